"""What several tests of the search family ask."""

import uuid

import pytest

from tests.serving import Served, Tenant
from tests.shop import Shop


@pytest.fixture
def shop(served: Served, tenant: Tenant) -> Shop:
    name = str(uuid.uuid4())
    return Shop(served, tenant, served.run(served.collection(tenant.id, name)))
