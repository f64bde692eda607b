"""What every command needs: the settings in force and the parts' addresses, each read when it is asked for.

So are the clients' libraries imported: they take longer than most commands, and many commands need none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy import settings as settings_module
from deploy.addresses import Addresses, addresses, use_credentials
from deploy.cli.output import CommandError
from deploy.local.folders import check_layout, data_folder
from deploy.settings import Settings
from deploy.shown import shown

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

    from streams.artifacts import ArtifactStore


@dataclass
class Context:
    """The global flags; filled by the command line before a command runs."""

    flags: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return settings_module.load(self.flags)

    @property
    def addresses(self) -> Addresses:
        """Of the parts; what goes wrong there is a command's to say, not its clients'."""
        from streams import kafka

        kafka.quieten()
        settings = self.settings
        check_layout(settings.data)
        use_credentials(settings)
        return addresses(settings)

    @property
    def bootstrap(self) -> str:
        """Kafka's address, once it has answered there. Raises `CommandError`."""
        from deploy.local import kafka as local_kafka

        address = self.addresses.bootstrap
        if not local_kafka.ready(address, timeout_s=5):
            raise CommandError(f"Kafka does not answer at {shown(address)}: is it up? (`tuneloop status`)")
        return address

    @property
    def store(self) -> ArtifactStore:
        from streams.artifacts import open_store

        settings = self.settings
        if not settings.artifacts:
            data_folder(settings.data)
        return open_store(*settings.artifact_place)

    def clickhouse(self, writes: bool = True) -> Client:
        """A client for the writer or the analyst. Raises `CommandError`."""
        from clickhouse_connect.driver.exceptions import ClickHouseError

        from deploy.clickhouse_login import analyst, writer
        from streams.clickhouse import connect

        settings, url = self.settings, self.addresses.clickhouse
        try:
            return connect(url, timeout_s=5, login=writer(settings) if writes else analyst(settings))
        except ClickHouseError as error:
            if getattr(error, "code", None) is not None:  # it answered, and not as hoped
                raise
            raise CommandError(f"ClickHouse does not answer at {shown(url)}: is it up? (`tuneloop status`)") from error


context = Context()
