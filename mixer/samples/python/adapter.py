#!/usr/bin/env python3
"""An adapter out of process in Python: a check by a template of its own (wordcount), attributes by another (team), and the
standard templates metric and quota. It shows both ways to get its parameters: with every call, or once, in a session (--session).

    adapter.py --port 0 [--session] --generated FOLDER    (FOLDER: what build.sh has made)

It prints `listening PORT` when it is up.
"""

import argparse
import sys
import threading
import uuid
from concurrent import futures


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, default=0)
    arguments.add_argument("--session", action="store_true")
    arguments.add_argument("--generated", required=True)
    options = arguments.parse_args()
    sys.path.insert(0, options.generated)

    import grpc
    from google.rpc import status_pb2
    from istio.mixer.adapter.model.v1beta1 import model_pb2, model_pb2_grpc
    from mixer.template import metric_pb2, metric_pb2_grpc, quota_pb2_grpc
    import config_pb2
    import team_pb2
    import team_pb2_grpc
    import wordcount_pb2_grpc

    PERMISSION_DENIED = 7

    class Sessions:
        """Parameters by session; without sessions they come with the call."""

        def __init__(self):
            self.known = {}
            self.lock = threading.Lock()

        def params(self, request, context):
            params = config_pb2.Params()
            if not options.session:
                request.adapter_config.Unpack(params)
                return params
            assert not request.HasField("adapter_config")
            name = dict(context.invocation_metadata()).get("session-id", "")
            with self.lock:
                if name not in self.known:
                    context.abort(grpc.StatusCode.NOT_FOUND, f"no session {name!r}")
                return self.known[name]

    sessions = Sessions()

    class Backend(model_pb2_grpc.InfrastructureBackendServicer):
        def Validate(self, request, context):
            params = config_pb2.Params()
            request.adapter_config.Unpack(params)
            status = status_pb2.Status()
            if params.max_words < 0:
                status.code, status.message = 3, "max_words must not be negative"
            return model_pb2.ValidateResponse(status=status)

        def CreateSession(self, request, context):
            params = config_pb2.Params()
            request.adapter_config.Unpack(params)
            name = str(uuid.uuid4())
            with sessions.lock:
                sessions.known[name] = params
            print("types", " ".join(sorted(request.inferred_types)), flush=True)
            return model_pb2.CreateSessionResponse(session_id=name)

        def CloseSession(self, request, context):
            with sessions.lock:
                sessions.known.pop(request.session_id, None)
            print("closed", flush=True)
            return model_pb2.CloseSessionResponse()

    class WordCount(wordcount_pb2_grpc.HandleWordCountServiceServicer):
        def HandleWordCount(self, request, context):
            params = sessions.params(request, context)
            words = len(request.instance.text.split())
            result = model_pb2.CheckResult(valid_use_count=1)
            result.valid_duration.seconds = 1
            if words > params.max_words:
                result.status.code = PERMISSION_DENIED
                result.status.message = f"{words} words for {request.instance.name}"
            return result

    class Team(team_pb2_grpc.HandleTeamServiceServicer):
        def HandleTeam(self, request, context):
            sessions.params(request, context)
            # "reviews-v2" belongs to the team "reviews".
            return team_pb2.OutputMsg(team=request.instance.workload.split("-")[0])

    class Metric(metric_pb2_grpc.HandleMetricServiceServicer):
        def HandleMetric(self, request, context):
            params = sessions.params(request, context)
            with open(params.file, "a", encoding="utf-8") as file:
                for instance in request.instances:
                    labels = {k: v.string_value for k, v in sorted(instance.dimensions.items())}
                    file.write(f"{instance.name} {instance.value.int64_value} {labels}\n")
            return model_pb2.ReportResult()

    class Quota(quota_pb2_grpc.HandleQuotaServiceServicer):
        def HandleQuota(self, request, context):
            params = sessions.params(request, context)
            result = model_pb2.QuotaResult()
            for name, wanted in request.quota_request.quotas.items():
                result.quotas[name].granted_amount = min(wanted.amount, params.max_words)
                result.quotas[name].valid_duration.seconds = 5
            return result

    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    model_pb2_grpc.add_InfrastructureBackendServicer_to_server(Backend(), server)
    wordcount_pb2_grpc.add_HandleWordCountServiceServicer_to_server(WordCount(), server)
    team_pb2_grpc.add_HandleTeamServiceServicer_to_server(Team(), server)
    metric_pb2_grpc.add_HandleMetricServiceServicer_to_server(Metric(), server)
    quota_pb2_grpc.add_HandleQuotaServiceServicer_to_server(Quota(), server)
    port = server.add_insecure_port(f"127.0.0.1:{options.port}")
    if port == 0:
        sys.exit(f"port {options.port} is taken")
    server.start()
    print(f"listening {port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
