"""ImageNet, 64x64, with classes: the ADM of Dhariwal & Nichol 2021, 296 M parameters.

Command:   python train.py adm64
           (imagenet_resized/64x64 prepared once by TFDS; it stays on disk and is read as it is needed)
           to train for guidance without a classifier, too: --net.label-dropout 0.1, which adds a class for "no class"
           from the published weights:
           python -m ddpm_jax.cli.convert read 64x64_diffusion.pt runs/adm64 --preset adm64
           256x256_diffusion.pt (553,838,086 parameters) is read by
             --preset adm64 --data.shape 256 256 3 --net.features 256 --net.multipliers 1 1 2 2 4 4
             --net.num-res-blocks 2 --net.attention-levels 3 4 5 --net.qkv-by-head --net.dropout 0
             --diffusion.schedule linear
           256x256_diffusion_uncond.pt and lsun_*.pt (552,814,086) so too, with --net.num-classes 0;
           128x128_diffusion.pt (421,529,606) with --data.shape 128 128 3 --net.multipliers 1 1 2 3 4
             --net.attention-levels 2 3 4 --net.head-features 0 (four heads);
           512x512_diffusion.pt (558,997,638) with --data.shape 512 512 3 --net.multipliers 0.5 1 1 2 2 4 4
             --net.attention-levels 4 5 6
Hardware:  many accelerators: 540,000 steps of 2048 images are 863 passes over the set; --net.remat full saves memory
Result:    FID 2.07 with 250 steps and no guidance (Dhariwal & Nichol 2021, Table 5); settings from its Appendix I
"""

from ddpm_jax.config import ADM, Config, Data, Diffusion, Optimizer, Run, Sampling

config = Config(
    steps=540_000,
    batch_size=2048,
    data=Data(source="tfds", name="imagenet_resized/64x64", shape=(64, 64, 3), flip=True, stream=True),
    diffusion=Diffusion(schedule="cosine", num_steps=1000, objective="hybrid", variance="learned_range"),
    net=ADM(
        features=192,
        multipliers=(1.0, 2.0, 3.0, 4.0),
        num_res_blocks=3,
        attention_levels=(1, 2, 3),
        head_features=64,
        qkv_by_head=False,
        dropout=0.1,
        num_classes=1000,
        label_dropout=0.0,
        resblock_updown=True,
        dtype="bfloat16",
    ),
    optimizer=Optimizer(name="adamw", learning_rate=3e-4, warmup_steps=0, clip_norm=0.0, ema_decay=0.9999),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=100, sample_every=10_000, checkpoint_every=5000, keep_every=50_000),
)
