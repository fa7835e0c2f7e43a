"""CIFAR-10, 32x32: a learned variance after Nichol & Dhariwal 2021, hybrid objective, 52.5 M parameters.

Command:   python train.py iddpm_cifar10
           (CIFAR-10 prepared once by TFDS where there is a network; --data.path DATA_DIR if not in the usual place)
           by the bound: python train.py iddpm_cifar10 --diffusion.objective vlb --diffusion.draw-t second_moment
           from the published weights:
           python -m ddpm_jax.cli.convert read cifar10_uncond_50M_500K.pt runs/iddpm --preset iddpm_cifar10
Hardware:  the paper names none; 500,000 steps of 128 images are 1280 passes over the set
Result:    3.17 bits/dim and FID 3.19 by the hybrid objective, 2.94 and 11.47 by the bound (Nichol & Dhariwal 2021,
           Table 2); training and images as in their code, which mirrors none
"""

from ddpm_jax.config import ADM, Config, Data, Diffusion, Optimizer, Run

config = Config(
    steps=500_000,
    batch_size=128,
    data=Data(source="tfds", name="cifar10", shape=(32, 32, 3)),
    diffusion=Diffusion(schedule="cosine", num_steps=4000, objective="hybrid", variance="learned_range"),
    net=ADM(
        features=128,
        multipliers=(1.0, 2.0, 2.0, 2.0),
        num_res_blocks=3,
        attention_levels=(1, 2),
        num_heads=4,
        dropout=0.3,
    ),
    optimizer=Optimizer(name="adamw", learning_rate=1e-4, warmup_steps=0, clip_norm=0.0, ema_decay=0.9999),
    run=Run(log_every=100, sample_every=10_000, checkpoint_every=5000, keep_every=100_000),
)
