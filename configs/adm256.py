"""ImageNet, 256x256, with classes: the ADM of Dhariwal & Nichol 2021, 554 M parameters.

Command:   python train.py adm256 --devices.fsdp 8
           (imagenet2012 prepared once by TFDS; it stays on disk, is read and cut to squares as it is needed)
           from the published weights:
           python -m ddpm_jax.cli.convert read 256x256_diffusion.pt runs/adm256 --preset adm256
           256x256_diffusion_uncond.pt and lsun_*.pt (552,814,086 parameters) so too, with --net.num-classes 0
Hardware:  64 accelerators and more: 1,980,000 steps of 256 images are 396 passes over the set; ask
           python -m ddpm_jax.cli.plan adm256 --target v5p:4x4x4 --devices.fsdp 8
Result:    FID 10.94 with 250 steps and no guidance, 4.59 with (Dhariwal & Nichol 2021, Table 5); settings from its
           Appendix I
"""

from ddpm_jax.config import ADM, Config, Data, Diffusion, Optimizer, Run, Sampling

config = Config(
    steps=1_980_000,
    batch_size=256,
    data=Data(source="tfds", name="imagenet2012", shape=(256, 256, 3), flip=True, stream=True),
    diffusion=Diffusion(schedule="linear", num_steps=1000, objective="hybrid", variance="learned_range"),
    net=ADM(
        features=256,
        multipliers=(1.0, 1.0, 2.0, 2.0, 4.0, 4.0),
        num_res_blocks=2,
        attention_levels=(3, 4, 5),
        head_features=64,
        num_classes=1000,
        resblock_updown=True,
        dtype="bfloat16",
        remat="full",
    ),
    optimizer=Optimizer(name="adamw", learning_rate=1e-4, warmup_steps=0, clip_norm=0.0, ema_decay=0.9999),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=100, sample_every=10_000, num_samples=16, checkpoint_every=5000, keep_every=50_000),
)
