"""ImageNet, 64x64, without classes: Nichol & Dhariwal 2021, hybrid objective, 121 M parameters.

Command:   python train.py iddpm_imagenet64
           (downsampled_imagenet/64x64 prepared once by TFDS; it stays on disk and is read as it is needed)
           by the bound: --diffusion.objective vlb --diffusion.draw-t second_moment
           from the published weights:
           python -m ddpm_jax.cli.convert read imagenet64_uncond_100M_1500K.pt runs/in64 --preset iddpm_imagenet64
           imagenet64_cond_270M_250K.pt (273,049,350 parameters) is read by these flags, the last to train on:
             --preset iddpm_imagenet64 --net.features 192 --net.num-classes 1000 --diffusion.time-range 4000
             --diffusion.vlb-weight 0.00025
           lsun_uncond_100M_1200K_bs128.pt and ..._2400K_bs64.pt (113,676,678) by
             --preset iddpm_imagenet64 --data.shape 256 256 3 --net.multipliers 1 1 2 2 4 4 --net.num-res-blocks 2
             --net.attention-levels 4 --net.num-heads 1 --net.no-scale-shift-norm
             --diffusion.schedule linear --diffusion.num-steps 1000
Hardware:  the paper names none; 1.5 M steps of 128 images are 150 passes over the set
Result:    3.57 bits/dim and FID 19.2 by the hybrid objective, 3.53 and 40.1 by the bound (Nichol & Dhariwal 2021,
           Table 1)
"""

from ddpm_jax.config import ADM, Config, Data, Diffusion, Optimizer, Run

config = Config(
    steps=1_500_000,
    batch_size=128,
    data=Data(source="tfds", name="downsampled_imagenet/64x64", shape=(64, 64, 3), stream=True),
    diffusion=Diffusion(schedule="cosine", num_steps=4000, objective="hybrid", variance="learned_range"),
    net=ADM(
        features=128,
        multipliers=(1.0, 2.0, 3.0, 4.0),
        num_res_blocks=3,
        attention_levels=(2, 3),
        num_heads=4,
        dropout=0.0,
    ),
    optimizer=Optimizer(name="adamw", learning_rate=1e-4, warmup_steps=0, clip_norm=0.0, ema_decay=0.9999),
    run=Run(log_every=100, sample_every=20_000, checkpoint_every=5000, keep_every=100_000),
)
