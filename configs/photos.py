"""16x16 squares out of two photographs that a package ships: colour, in minutes.

Command:   python train.py photos
           python sample.py runs/photos --edit colourise --image 23 29 32 128 --data-split test
Hardware:  2 CPU cores, 10 to 15 minutes
Result:    squares of roofs and petals; the pictures of docs/sampling.md
Why so:    the smallest set in colour that needs no download. It has two photographs, and the network knows no others
Network:   1.0 M parameters
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps=2000,
    batch_size=64,
    data=Data(source="photos", shape=(16, 16, 3), flip=True),
    diffusion=Diffusion(schedule="cosine", variance="small"),
    net=UNet(features=32, multipliers=(1, 2), num_res_blocks=2, attention_levels=(1,), dropout=0.0, groups=8),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.995),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=50, sample_every=500, checkpoint_every=250),
)
