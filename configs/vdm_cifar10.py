"""CIFAR-10, 32x32: variational diffusion after Kingma et al. 2021, made for likelihood, 30.6 M parameters.

Command:   python train.py vdm_cifar10
           (CIFAR-10 prepared once by TFDS where there is a network; --data.path DATA_DIR if not in the usual place)
           the published run learns the two ends of the schedule, too: --diffusion.learn-schedule
Hardware:  TPU v3-8 in the published code's instructions, which give no hours; 10 M steps of 128 images, at full
           resolution through every block; --net.remat full saves memory
Result:    2.65 bits/dim without augmentation (Kingma et al. 2021, Table 1); 2.637 by the published code and weights
"""

from ddpm_jax.config import VDM, Config, Data, Diffusion, Optimizer, Run, Sampling

config = Config(
    steps=10_000_000,
    batch_size=128,
    data=Data(source="tfds", name="cifar10", shape=(32, 32, 3)),
    diffusion=Diffusion(
        schedule="log_snr_linear",
        schedule_args=(("start", 13.3), ("end", -5.0)),
        objective="continuous",
        variance="small",
        draw_t="stratified",
        learn_schedule=False,
    ),
    net=VDM(features=128, num_blocks=32, attention=False, fourier=(6, 7), dropout=0.1),
    optimizer=Optimizer(
        name="adamw", learning_rate=2e-4, warmup_steps=100, b2=0.99, weight_decay=0.01, clip_norm=0.0, ema_decay=0.9999
    ),
    sampling=Sampling(clip=False),
    run=Run(log_every=1000, sample_every=50_000, checkpoint_every=10_000, keep_every=1_000_000),
)
