"""A classifier of noised digits, to lead a diffusion model by its slope (Dhariwal & Nichol 2021).

Command:   python train.py digits_classifier
           python sample.py runs/digits --classifier runs/digits_classifier --classifier-weight 2
Hardware:  2 CPU cores, about a minute
Result:    right on 93 % of the 297 held-out digits at sigma / alpha = 0.01, on 87 % at 0.5, 72 % at 1, 41 % at 2 and
           27 % at 3
Network:   153,226 parameters
"""

from ddpm_jax.config import Classifier, Config, Data, Diffusion, Optimizer, Run

config = Config(
    steps=600,
    batch_size=64,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(schedule="cosine", objective="classifier"),
    net=Classifier(
        features=32,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        dropout=0.1,
        num_classes=10,
        groups=8,
    ),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=50, decay="cosine", ema_decay=0.99),
    run=Run(log_every=50, checkpoint_every=200),
)
