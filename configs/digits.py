"""scikit-learn's handwritten digits, 8x8: a diffusion model in minutes, on a laptop.

Command:   python train.py digits
Hardware:  2 CPU cores, 3 to 4 minutes
Result:    see the README: pictures, a classifier's confidence and the Frechet distance in pixel space
Why so:    with the linear schedule 8x8 images are noise half of the time; cosine spends the steps where they count
Network:   1.0 M parameters
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps=1500,
    batch_size=64,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(schedule="cosine", variance="small"),
    net=UNet(features=32, multipliers=(1, 2), num_res_blocks=2, attention_levels=(1,), dropout=0.0, groups=8),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.995),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=50, sample_every=250, checkpoint_every=250),
)
