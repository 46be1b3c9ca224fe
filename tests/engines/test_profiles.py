"""The sizes that an engine is made for."""

from pocketmoe.bundle.gpu_graphs import GpuGraphs, plain_file
from pocketmoe.engines.profiles import OpenInput, profiles_of

SEGMENT = "device/segment_000.onnx"


def test_profiles_have_room_for_the_rows_between_terms() -> None:
    graphs = GpuGraphs((SEGMENT,), (), chunk=32, batch=64, context=256)
    for hidden, step in ((64, 1), (96, 2), (33, 64)):
        places = OpenInput("places", (-1, 2), ("batch", None))
        terms = OpenInput("terms", (-1, hidden), ("terms", None))
        (profile,) = profiles_of(graphs, "device/combine_000.onnx", [terms, places])
        assert profile.span("terms").most == 64 * 2 * step
    for file in (SEGMENT, plain_file(SEGMENT)):
        assert len(profiles_of(graphs, file, [OpenInput("hidden", (-1, 8), ("tokens", None))])) == 2
