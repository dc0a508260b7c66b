#!/usr/bin/env python3
"""Writes tfevents.bin: four records as TensorBoard's own writer frames and encodes them.

    pip install tensorboard==2.21.0
    python3 tests/golden/make_event_golden.py
"""
import io
import pathlib

from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def main():
    value = summary_pb2.Summary.Value
    events = [
        event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2"),
        event_pb2.Event(wall_time=1700000001.5, step=300, summary=summary_pb2.Summary(
            value=[value(tag="loss", simple_value=2.5), value(tag="lr", simple_value=1e-4)])),
        event_pb2.Event(wall_time=1700000002, step=7,
                        session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)),
        event_pb2.Event(wall_time=1700000003, step=40, summary=summary_pb2.Summary(value=[value(
            tag="samples/1",
            metadata=summary_pb2.SummaryMetadata(
                plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name="text")),
            tensor=tensor_pb2.TensorProto(
                dtype=types_pb2.DT_STRING, string_val=["say **h\u00e9llo**\n".encode()],
                tensor_shape=tensor_shape_pb2.TensorShapeProto(
                    dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])))])),
    ]
    out = io.BytesIO()
    writer = RecordWriter(out)
    for event in events:
        writer.write(event.SerializeToString())
    (pathlib.Path(__file__).parent / "tfevents.bin").write_bytes(out.getvalue())


if __name__ == "__main__":
    main()
