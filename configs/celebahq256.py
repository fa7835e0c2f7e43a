"""CelebA-HQ, 256x256: the network and training of Ho et al. 2020, 114 M parameters.

Command:   python train.py celebahq256 --data.path FOLDER
           (a folder of JPEG or PNG files; they are shrunk to 256x256 once, into a cache)
Hardware:  TPU v3-8, about 63 hours for 500,000 steps at 2.2 steps/s (Ho et al. 2020, Appendix B)
Result:    the paper shows pictures and gives no FID for this set
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=500_000,
    batch_size=64,
    data=Data(source="folder", path="celeba_hq", shape=(256, 256, 3), flip=True),
    diffusion=Diffusion(schedule="linear", variance="small"),
    net=UNet(features=128, multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(4,), dropout=0.0),
    optimizer=Optimizer(learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0, ema_decay=0.9999),
    run=Run(log_every=100, sample_every=10_000, num_samples=16, checkpoint_every=5000, keep_every=100_000),
)
