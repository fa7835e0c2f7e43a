"""A run that rounding can't drive apart, whose wider arrays divide by eight: for tests of meshes."""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=24,
    batch_size=16,
    data=Data(source="digits", shape=(8, 8, 1), flip=True),
    diffusion=Diffusion(num_steps=40),
    net=UNet(features=16, multipliers=(1,), num_res_blocks=1, attention_levels=(), num_classes=10, dropout=0.0),
    # Adam divides a gradient by its own size: one that is nothing but rounding would move its parameter as far as any.
    # With this eps a gradient far below 1e-3 moves nothing.
    optimizer=Optimizer(learning_rate=3e-3, warmup_steps=4, eps=1e-3, ema_decay=0.9),
    run=Run(log_every=1, sample_every=24, num_samples=4, preview_steps=5, checkpoint_every=20),
)
