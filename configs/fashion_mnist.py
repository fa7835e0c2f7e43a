"""Fashion-MNIST, 28x28, all 60,000, from Debian's dataset-fashion-mnist: the smallest complete benchmark.

Command:   python train.py fashion_mnist
           (the four idx files elsewhere: --data.path FOLDER)
Hardware:  one GPU, about 1 hour (an estimate: not run); on 2 CPU cores try mnist5k first
Result:    smalldiffusion reports FID 5 to 6 with a DiT in about 2 hours on one GPU (its README); this preset's own
           score is not measured yet
Network:   6.8 M parameters
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, UNet

config = Config(
    steps=60_000,
    batch_size=128,
    data=Data(source="fashion_mnist", shape=(28, 28, 1)),
    diffusion=Diffusion(schedule="linear", variance="large"),
    net=UNet(features=64, multipliers=(1, 2, 2), num_res_blocks=2, attention_levels=(1, 2), dropout=0.1),
    optimizer=Optimizer(learning_rate=2e-4, warmup_steps=1000, ema_decay=0.9995),
    run=Run(log_every=100, sample_every=5000, checkpoint_every=5000),
)
