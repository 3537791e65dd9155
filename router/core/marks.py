"""What replicas and caches are called inside the router."""

from router.core.chains import Prediction
from router.core.ids import Namespace, ReplicaId

__all__ = ["Namespace", "Prediction", "ReplicaId"]
