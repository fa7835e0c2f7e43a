"""CIFAR-10, 32x32: the network and training of Ho et al. 2020, 35.7 M parameters.

Command:   python train.py cifar10
           (CIFAR-10 prepared once by TFDS where there is a network; --data.path DATA_DIR if not in the usual place)
Hardware:  TPU v3-8, 10.6 hours for 800,000 steps at 21 steps/s (Ho et al. 2020, Appendix B)
Result:    FID 3.17, Inception score 9.46 +- 0.11 (Ho et al. 2020, abstract)
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=800_000,
    batch_size=128,
    data=Data(source="tfds", name="cifar10", shape=(32, 32, 3), flip=True),
    diffusion=Diffusion(schedule="linear", variance="large"),
    net=UNet(features=128, multipliers=(1, 2, 2, 2), num_res_blocks=2, attention_levels=(1,), dropout=0.1),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=5000, clip_norm=1.0, ema_decay=0.9999),
    run=Run(log_every=100, sample_every=10_000, checkpoint_every=5000, keep_every=100_000),
)
