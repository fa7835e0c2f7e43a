"""A network that compiles fast and learns little: for tests of programs that train many."""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=4,
    batch_size=8,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(num_steps=20),
    net=UNet(features=8, multipliers=(1,), num_res_blocks=1, attention_levels=(), dropout=0.0, groups=4),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0, ema_decay=0.9),
    run=Run(log_every=2, checkpoint_every=4),
)
