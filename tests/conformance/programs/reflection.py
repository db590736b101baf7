"""A client that knows no protocol: it learns the service by reflection, as grpcurl does."""

from __future__ import annotations

import sys

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

SERVICE = "inference.GRPCInferenceService"


def main(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            SERVICE,
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }
        service = DescriptorPool(database).FindServiceByName(SERVICE)

        def call(name: str, question: dict[str, object]) -> dict[str, object]:
            method = service.methods_by_name[name]
            ask = channel.unary_unary(
                f"/{SERVICE}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            made = json_format.ParseDict(question, GetMessageClass(method.input_type)())
            return json_format.MessageToDict(ask(made, timeout=20))

        assert call("ServerReady", {}) == {"ready": True}
        rows = {"name": "features", "datatype": "FP32", "shape": [1, 30]}
        given = rows | {"contents": {"fp32Contents": [1.0] * 30}}
        got = call("ModelInfer", {"modelName": "breast-cancer", "inputs": [given]})
        assert {one["name"] for one in got["outputs"]} == {"label", "probabilities"}
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            said = health.Check(health_pb2.HealthCheckRequest(service=name))
            assert said.status == health_pb2.HealthCheckResponse.SERVING
        code = None
        try:
            health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        except grpc.RpcError as error:
            code = error.code()
        assert code == grpc.StatusCode.NOT_FOUND
    sys.stdout.write("fine\n")


main(sys.argv[1])
