"""Japanese woodblock prints at 64x64 with NoiseNet: the "DDPM from scratch" tutorial's run. Any folder of pictures.

Command:   python train.py prints --data.path FOLDER
Hardware:  one GPU, about a day (an estimate: not run)
Result:    the tutorial shows pictures, no score: about 200,000 prints, 10 epochs, Adam at a constant 2e-5, T = 1000
Steps:     10 epochs of 200,000 images in batches of 64; give --steps for a folder of another size
"""

from ddpm_jax.config import Config, Data, Diffusion, NoiseNet, Optimizer, Run

config = Config(
    steps=31_250,
    batch_size=64,
    data=Data(source="folder", path="prints", shape=(64, 64, 3)),
    diffusion=Diffusion(schedule="linear", variance="large"),
    net=NoiseNet(init_dim=64, dim_mults=(1, 2, 4, 8, 16), attn_resolutions=(16,)),
    optimizer=Optimizer(learning_rate=2e-5, warmup_steps=0, clip_norm=1.0, ema_decay=0.999),
    run=Run(log_every=100, sample_every=3125, checkpoint_every=3125),
)
