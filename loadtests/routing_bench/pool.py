"""Jobs in a few processes: as many at a time as there are, results written as they come."""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait

from loadtests.routing_bench.jobs import Job, Measure, Result
from loadtests.routing_bench.journal import Journal
from loadtests.routing_bench.plan import Matrix, jobs, saturation_of, weight, weight_left
from loadtests.routing_bench.work import compute


def run(matrix: Matrix, journal: Journal, processes: int, told: Callable[[str], None]) -> None:
    """Until nothing of the matrix is left.

    Args:
        told: Each time something is done: how much that is, and how long the rest will take.
    """
    by_name = {one.name: one for one in matrix.scenarios}
    begin, finished = time.monotonic(), 0.0
    # Spawned: what a child has is what it imports, whatever this process did before.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as executor:
        running: dict[Future[Result], Job] = {}
        try:
            while True:
                under_way = set(running.values())
                known = jobs(matrix, journal.results)
                left = [one for one in known if one not in journal.results and one not in under_way]
                for job in left[: processes - len(running)]:
                    scenario = by_name.get(job.scenario) or next(
                        one for one in matrix.scenarios if one.base == job.scenario
                    )
                    saturation = (
                        saturation_of(scenario, job.scale, journal.results)
                        if isinstance(job, Measure)
                        else None
                    )
                    running[executor.submit(compute, job, scenario, saturation)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    job = running.pop(future)
                    journal.add(future.result())
                    finished += weight(job)
                    passed = time.monotonic() - begin
                    rest_s = passed / finished * weight_left(matrix, journal.results)
                    done = sum(one in journal.results for one in known)
                    told(f"{done} of {len(known)} known, {_hours(passed)}, {_hours(rest_s)} left")
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _hours(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}:{minutes:02}"
