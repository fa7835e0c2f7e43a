"""scikit-learn's handwritten digits, by a network that predicts v: a teacher for models of few steps.

Command:   python train.py digits_v, then python -m ddpm_jax.cli.distill runs/digits_v
Hardware:  2 CPU cores, 4 minutes
Result:    Frechet distance in pixel space 0.20 by 1000 ancestral steps, 3.5 by 2 DDIM steps and 16 by 1; of students
           of it 0.42 and 0.56 (benchmarks/distill.py)
Why so:    eps says nothing about the image where nearly all is noise, and there a single step begins: v does
           (Salimans & Ho 2022, Sec. 4)
Network:   1.0 M parameters, that of digits
"""

from ddpm_jax.config import Config, Data, Diffusion, Optimizer, Run, Sampling, UNet

config = Config(
    steps=1500,
    batch_size=64,
    data=Data(source="digits", shape=(8, 8, 1)),
    diffusion=Diffusion(schedule="cosine", variance="small", prediction="v", weighting="truncated"),
    net=UNet(features=32, multipliers=(1, 2), num_res_blocks=2, attention_levels=(1,), dropout=0.0, groups=8),
    optimizer=Optimizer(learning_rate=1e-3, warmup_steps=100, decay="cosine", ema_decay=0.995),
    sampling=Sampling(steps=(250,)),
    run=Run(log_every=50, sample_every=250, checkpoint_every=250),
)
