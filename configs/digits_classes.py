"""scikit-learn's digits by class: the network of digits, told which digit, for guidance.

Command:   python train.py digits_classes
           python sample.py runs/digits_classes --guidance 2
Hardware:  2 CPU cores, 3 to 4 minutes
Result:    of 1000 digits by 50 steps of DDIM, a linear classifier (right on 92 % of held-out ones) takes 95 % for the
           one asked for; with --guidance 2 and 4 99.8 % and 99.9 %, but they vary less: the Frechet distance of
           pixels is 0.18, 0.49 and 1.41; with --guidance 4 --guidance-interval 0.2 2 99.8 % and 0.69
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
        num_classes=10,
        label_dropout=0.1,
    ),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.995),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=50, sample_every=250, checkpoint_every=250, keep_every=250),
)
