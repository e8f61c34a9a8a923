"""The private parts of libraries that are used are there, in the releases that pyproject.toml allows."""

import inspect
import re
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import amqp
import amqp.channel
import amqp.connection
import kombu.transport
import prometheus_client
import pytest
from celery.backends.redis import RedisBackend
from celery.beat import Scheduler
from celery.worker.consumer import Consumer
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from flower.app import Flower
from flower.events import Events
from flower.inspector import Inspector
from flower.options import options
from flower.urls import settings as flower_settings
from kombu.transport import pyamqp, redis, virtual
from prometheus_client import exposition, multiprocess, values
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from tests.servers import ROOT

LIBRARIES = ("amqp", "celery", "flower", "kombu", "prometheus-client", "uvicorn")


def check(library: str, owner: Any, names: str, used_in: str) -> None:
    """Fail where a class, its objects or a module have a name no more."""
    made: set[str] = set()
    for each in inspect.getmro(owner) if inspect.isclass(owner) else ():
        if inspect.isfunction(initialize := vars(each).get("__init__")):
            made.update(re.findall(r"\bself\.(\w+)(?:: [^=]+)? =", inspect.getsource(initialize)))
    gone = [name for name in names.split() if not hasattr(owner, name) and name not in made]
    assert not gone, (
        f"{library} {version(library)}: {owner.__name__} has no {', '.join(gone)}, which {used_in} uses. "
        f"Change {used_in}, or keep {library} below this release."
    )


def check_parameters(library: str, function: Callable[..., Any], names: str, used_in: str) -> None:
    """Fail where a function does not take a parameter any more."""
    gone = [name for name in names.split() if name not in inspect.signature(function).parameters]
    assert not gone, (
        f"{library} {version(library)}: {function.__qualname__} takes no {', '.join(gone)}, which {used_in} passes. "
        f"Change {used_in}, or keep {library} below this release."
    )


def test_uvicorn_has_the_private_parts_that_are_used() -> None:
    used_in = "api/web/protocol.py"
    names = (
        "loop parser pipeline transport flow scheme scope headers url cycle connection_made data_received "
        "eof_received on_url on_headers_complete on_body on_response_complete _unset_keepalive_if_required "
        "_start_asgi_task _should_upgrade"
    )
    source = inspect.getsource(HttpToolsProtocol)
    assert "self.url = " in source, f"uvicorn: HttpToolsProtocol sets no `url`, which {used_in} uses"
    check("uvicorn", HttpToolsProtocol, names.replace(" url ", " "), used_in)
    names = (
        "more_body message_event response_started response_complete keep_alive disconnected waiting_for_100_continue"
    )
    check("uvicorn", RequestResponseCycle, names, used_in)
    check_parameters("uvicorn", HttpToolsProtocol._start_asgi_task, "cycle app", used_in)


def test_kombu_has_the_private_parts_that_are_used() -> None:
    used_in = "workers/broker/transport.py"
    names = (
        "ack_emulation priority_steps conn_or_acquire _put _create_client _connparams _brpop_read _q_for_pri "
        "_get_message_priority Message"
    )
    for channel in (redis.Channel, redis.SentinelChannel):
        check("kombu", channel, names, used_in)
        check_parameters("kombu", channel._create_client, "asynchronous", used_in)
        check_parameters("kombu", channel._connparams, "asynchronous", used_in)
        check_parameters("kombu", channel._get_message_priority, "message reverse", used_in)
    for transport in (redis.Transport, redis.SentinelTransport):
        check("kombu", transport, "Channel", used_in)
    check("kombu", virtual.Message, "ack_log_error reject_log_error acknowledged", "workers/broker/consumer.py")
    check("kombu", kombu.transport, "TRANSPORT_ALIASES", "workers/servers.py")
    used_in = "workers/broker/rabbitmq.py"
    check("kombu", pyamqp.Message, "ack reject ack_log_error reject_log_error delivery_info", used_in)
    check("kombu", pyamqp.Channel, "Message", used_in)
    check("kombu", pyamqp.Connection, "Channel", used_in)
    check("kombu", pyamqp.Transport, "Connection verify_connection establish_connection client", used_in)


def test_amqp_has_the_private_parts_that_are_used() -> None:
    used_in = "workers/broker/rabbitmq.py"
    check("amqp", amqp.connection.Connection, "collect connected connect_timeout sock wait", used_in)
    check("amqp", amqp.channel.Channel, "basic_publish_confirm connection wait", used_in)
    check_parameters("amqp", amqp.channel.Channel.wait, "method callback timeout returns_tuple", used_in)
    check_parameters("amqp", amqp.channel.Channel._basic_publish, "timeout confirm_timeout", used_in)


def test_celery_has_the_private_parts_that_are_used() -> None:
    used_in = "workers/broker/consumer.py"
    names = (
        "Blueprint ensure_connected create_task_handler on_unknown_message on_unknown_task on_invalid_task "
        "on_decode_error connection_errors channel_errors"
    )
    check("celery", Consumer, names, used_in)
    delayed = [step for step in Consumer.Blueprint.default_steps if step.endswith(f":{DelayedDelivery.__name__}")]
    assert len(delayed) == 1, f"celery: no step DelayedDelivery, which {used_in} leaves out"
    used_in = "workers/broker/results.py"
    check("celery", RedisBackend, "client on_task_call store_result _get_task_meta_for", used_in)
    prefix = RedisBackend.task_keyprefix
    assert prefix == "celery-task-meta-", f"celery: results are stored under {prefix}; see workers/app.py"
    check("celery", Scheduler, "apply_entry apply_async", "workers/schedule.py")
    check_parameters("celery", Scheduler.apply_async, "entry producer advance", "workers/schedule.py")


def test_prometheus_client_has_the_private_parts_that_are_used() -> None:
    used_in = "core/metrics.py"
    check("prometheus-client", values, "ValueClass MultiProcessValue", used_in)
    check("prometheus-client", multiprocess, "mark_process_dead MultiProcessCollector", used_in)
    check("prometheus-client", exposition, "choose_encoder", used_in)
    for metric in (
        prometheus_client.Histogram("payouts_private_parts", "", registry=None),
        prometheus_client.Counter("payouts_private_parts", "", registry=None),
    ):
        names = ["_labelnames"]
        names += ["_sum", "_upper_bounds", "_buckets"] if isinstance(metric, prometheus_client.Histogram) else []
        gone = [name for name in names if not hasattr(metric, name)]
        assert not gone, f"prometheus-client: {type(metric).__name__} has no {gone}, which {used_in} uses"


def test_flower_has_the_private_parts_that_are_used() -> None:
    used_in = "workers/flower.py"
    check("flower", Events, "run on_event state io_loop capp", used_in)
    check_parameters("flower", Events.__init__, "enable_events max_tasks_in_memory", used_in)
    check("flower", Inspector, "inspect_methods _on_update", used_in)
    check_parameters("flower", Inspector.__init__, "io_loop capp timeout max_concurrency", used_in)
    check_parameters("flower", Inspector._on_update, "workername method response", used_in)
    check("flower", Flower, "find_handler get_handler_delegate start_http_server start stop inspector events", used_in)
    names = ["basic_auth", "read_only", "address", "port", "purge_offline_workers", "tasks_columns", "inspect_timeout"]
    gone = [name for name in names if name not in options]
    assert not gone, f"flower: no options {gone}, which {used_in} sets"
    assert flower_settings


@pytest.mark.parametrize("library", LIBRARIES)
def test_library_whose_private_parts_are_used_ends_at_the_next_minor_release(library: str) -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (given,) = [each for each in dependencies if re.match(rf"{library}(\[|>)", each)]
    major, minor = version(library).split(".")[:2]
    assert given.endswith(f">={major}.{minor},<{major}.{int(minor) + 1}")


def test_a_part_that_is_gone_is_named_with_its_library_and_with_the_file_that_uses_it() -> None:
    with pytest.raises(AssertionError, match=r"uvicorn \S+: .*RequestResponseCycle has no gone, which here\.py uses"):
        check("uvicorn", RequestResponseCycle, "more_body gone", "here.py")
    with pytest.raises(AssertionError, match=r"amqp \S+: \S+wait takes no gone, which here\.py passes"):
        check_parameters("amqp", amqp.channel.Channel.wait, "timeout gone", "here.py")
