"""Rows and results as tests need them."""

from loadtests.routing_bench.jobs import Job, Measure, Result, Saturate, Saturation
from loadtests.sim.report import Row

SATURATION = Saturation(
    requests_per_s=10.0,
    requests=600,
    blocks={"tight": 100, "medium": 150, "ample": 225},
    keeps_up="prefix_aware",
)


def row(policy: str, mean_s: float, p99_s: float = 1.0, hits: int = 100, failed: int = 0) -> Row:
    return Row(
        policy=policy,
        requests=10,
        failed=failed,
        ttft_mean_s=mean_s,
        ttft_p50_s=mean_s / 2,
        ttft_p99_s=p99_s,
        tpot_mean_s=0.02,
        e2e_mean_s=mean_s + 1.0,
        hit_tokens=hits,
        hit_share=0.5,
        recomputed_tokens=0,
        goodput=1.0,
        goodput_ideal=1.0,
        imbalance=1.0,
        duration_s=60.0,
    )


def result(job: Job, mean_s: float = 1.0) -> Result:
    if isinstance(job, Saturate):
        return Result(job=job, cpu_s=1.0, saturation=SATURATION)
    return Result(job=job, cpu_s=1.0, row=row(job.policy, mean_s))


def measure(policy: str = "prefix_aware", seed: int = 0, **other: object) -> Measure:
    fields: dict[str, object] = {
        "scenario": "chat",
        "load": 100,
        "cache": "medium",
        "replicas": 8,
        **other,
    }
    return Measure(policy=policy, seed=seed, **fields)  # type: ignore[arg-type]
