"""LSUN bedroom, church or cat, 256x256: the network and training of Ho et al. 2020, 114 M parameters.

Command:   python train.py lsun256 [--data.name lsun/bedroom | lsun/cat] [--steps 2400000 | 1800000]
           (the set prepared once by TFDS; it stays on disk and is read as it is needed. The paper mirrors no bedrooms:
           --data.no-flip)
Hardware:  TPU v3-8 at 2.2 steps/s: church 1.2 M steps, 152 hours; bedroom 2.4 M (1.15 M for the
           larger network); cat 1.8 M (Ho et al. 2020, App. B)
Result:    FID church 7.89, bedroom 6.36 (4.90 with 256 M parameters: --net.features 192), cat 19.75 (Ho et al. 2020,
           Table 3)
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=1_200_000,
    batch_size=64,
    data=Data(source="tfds", name="lsun/church_outdoor", shape=(256, 256, 3), flip=True, stream=True),
    diffusion=Diffusion(schedule="linear", variance="small"),
    net=UNet(features=128, multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(4,), dropout=0.0),
    optimizer=Optimizer(learning_rate=2e-5, warmup_steps=5000, clip_norm=1.0, ema_decay=0.9999),
    run=Run(log_every=100, sample_every=20_000, num_samples=16, checkpoint_every=5000, keep_every=200_000),
)
