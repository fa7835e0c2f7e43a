"""Digits made large: the second half of a cascade, from 4x4 to 8x8; and how its first half is trained.

Command:   python train.py digits_sr
           python train.py digits --data.shape 4 4 1 --data.shrink 2 --workdir runs/digits_small
           python sample.py runs/digits_sr --edit cascade --base runs/digits_small --versions 8
Hardware:  2 CPU cores, 4 minutes and 2 for the small ones
Result:    see the pictures; python sample.py runs/digits_sr --edit superresolve --image 0 1 2 takes real digits
Why so:    the network of digits, shown the small image (Ho et al. 2022, Cascaded diffusion models, Sec. 4)
Network:   1.0 M parameters
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps=1500,
    batch_size=64,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(schedule="cosine", variance="small"),
    net=UNet(
        features=32,
        multipliers=(1, 2),
        num_res_blocks=2,
        attention_levels=(1,),
        dropout=0.0,
        groups=8,
        enlarges=2,
    ),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.995),
    sampling=Sampling(steps=(100,)),
    run=Run(log_every=50, sample_every=250, checkpoint_every=250),
)
