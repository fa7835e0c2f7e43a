"""The smallest run that has every part: for tests."""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps=8,
    batch_size=8,
    data=Data(source="digits", shape=(8, 8, 1), flip=True),
    diffusion=Diffusion(
        num_steps=40,
        objective="hybrid",
        variance="learned_range",
        draw_t="second_moment",
        draw_t_args=(("keep", 1.0),),
    ),
    net=UNet(features=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), num_classes=10, dropout=0.1),
    optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2, decay="cosine", ema_decay=0.9),
    sampling=Sampling(steps=(10,)),
    run=Run(log_every=2, sample_every=4, num_samples=4, preview_steps=5, checkpoint_every=2, keep_last=2, keep_every=6),
)
