"""Pictures of the distributions, as SVG."""

from pathlib import Path
from statistics import median

from bench.report import caption, names
from bench.runner import Results


def draw(results: Results, directory: Path) -> list[Path]:
    """Write the pictures there, and return which."""
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    if results.delays_ms:
        drawn.append(_delays(results, directory / "chunk-delay.svg"))
    if "s2_us" in results.figures:
        drawn.append(_costs(results, directory / "cpu-per-chunk.svg"))
    return drawn


def _delays(results: Results, path: Path) -> Path:
    """How many chunks of S2b took how long from provider to client."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the bench group only

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    shares = [share / 1000 for share in range(1, 1000)]
    for target, rounds in results.delays_ms.items():
        middle = [median(at_share) for at_share in zip(*rounds, strict=True)]
        axes.plot(middle, [1 - share for share in shares], label=target)
    axes.set(
        title="S2b: chunks later than this, 20 streams",
        xlabel="milliseconds from provider to client",
        ylabel="share of chunks",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return _save(figure, results, path)


def _costs(results: Results, path: Path) -> Path:
    """CPU per chunk of S2, every round a dot."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the bench group only

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    by_target = results.figures["s2_us"]
    for place, target in enumerate(shown := names(results)):
        rounds = by_target[target]
        axes.barh(place, median(rounds), color="tab:blue", alpha=0.6)
        axes.plot(rounds, [place] * len(rounds), "k.", markersize=4)
    axes.set(
        title="S2: CPU per chunk, 200 streams",
        xlabel="microseconds; dots are rounds",
        yticks=range(len(shown)),
        yticklabels=shown,
    )
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, results, path)


def _save(figure: object, results: Results, path: Path) -> Path:
    from matplotlib import rc_context  # noqa: PLC0415 - of the bench group only
    from matplotlib.figure import Figure  # noqa: PLC0415 - of the bench group only

    assert isinstance(figure, Figure)
    metadata = {"Date": None, "Description": caption(results)}
    with rc_context({"svg.hashsalt": "bench"}):  # the same figures, the same bytes
        figure.savefig(path, metadata=metadata)
    return path
