"""The route table: what is served where, who may call it, and what the audit log keeps of it.

The table is data. The server, the OpenAPI document's test and the attacks of the promise tests all read it:
a new row is served, documented and attacked, or the tests fail.
"""

from appliance.accounts.audit import Event
from appliance.accounts.rights import Scope
from appliance.api.account import Account
from appliance.api.annotate import Annotate
from appliance.api.asynchronous import PATH as REQUEST
from appliance.api.asynchronous import Asynchronous
from appliance.api.colours import Colours
from appliance.api.files import Files
from appliance.api.image_matching import ImageMatching
from appliance.api.labels import Labels
from appliance.api.management_routes import MANAGEMENT_ROUTES
from appliance.api.objects import Objects
from appliance.api.open_inference import OpenInference
from appliance.api.payload import Form
from appliance.api.probes import Probes
from appliance.api.recognition import Recognition
from appliance.api.routing import EVERYWHERE, OPERATORS, READ, Access, Route
from appliance.api.similarity import Similarity
from appliance.api.similarity_changes import SimilarityChanges
from appliance.api.tasks import Tasks
from appliance.api.training_images import TrainingImages

MATCHING = "/image_matching/v2"


def _search(prefix: str) -> tuple[Route, ...]:
    read, write, changes = Scope.SEARCH_READ, Scope.SEARCH_WRITE, SimilarityChanges
    erase = Event.SEARCH_DELETE
    return (
        Route("POST", f"{prefix}/insert", changes.insert, write, Event.SEARCH_INSERT, Form.RECORDS),
        Route("POST", f"{prefix}/upsert", changes.upsert, write, Event.SEARCH_UPSERT, Form.RECORDS),
        Route("POST", f"{prefix}/update", changes.update, write, Event.SEARCH_UPDATE, Form.IDS),
        Route("POST", f"{prefix}/delete", changes.delete, write, erase, Form.IDS),
        Route("POST", f"{prefix}/deleteByFilter", changes.delete_by_filter, write, erase, Form.FIELDS),
        Route("POST", f"{prefix}/get", Similarity.get, read, READ, Form.IDS),
        Route("POST", f"{prefix}/visualKNN", Similarity.visual_knn, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/visualRankRecords", Similarity.visual_rank_records, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/nearDuplicates", Similarity.near_duplicates, read, READ, Form.QUERY),
        Route("POST", f"{prefix}/random", Similarity.random, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/allRecords", Similarity.all_records, read, READ, Form.FIELDS),
        Route("POST", f"{prefix}/ping", Similarity.ping, read, READ, Form.FIELDS),
    )


def _model(path: str) -> tuple[Route, ...]:
    infer = Scope.INFER
    return (
        Route("GET", path, OpenInference.model, infer, READ),
        Route("GET", f"{path}/ready", OpenInference.model_ready, infer, READ),
        Route("POST", f"{path}/infer", OpenInference.infer, infer, READ, Form.BYTES),
    )


def _tasks_and_labels(family: str) -> tuple[Route, ...]:
    """What recognition and detection have in common."""
    read, write = Scope.DATASETS_READ, Scope.DATASETS_WRITE
    task, label = f"/{family}/v2/task", f"/{family}/v2/label"
    change, relabel = Event.TASK_CHANGE, Event.LABEL_CHANGE
    return (
        Route("GET", task, Tasks.list, read, READ),
        Route("POST", task, Tasks.add, write, Event.TASK_ADD, Form.FIELDS),
        Route("GET", f"{task}/{{id}}", Tasks.get, read, READ),
        Route("DELETE", f"{task}/{{id}}", Tasks.delete, write, Event.TASK_DELETE),
        Route("POST", f"{task}/{{id}}/train", Tasks.train, Scope.TRAIN, READ, Form.FIELDS),
        Route("POST", f"{task}/{{id}}/add-label", Tasks.add_label, write, change, Form.FIELDS),
        Route("POST", f"{task}/{{id}}/remove-label", Tasks.remove_label, write, change, Form.FIELDS),
        Route("GET", label, Labels.list, read, READ),
        Route("POST", label, Labels.add, write, Event.LABEL_ADD, Form.FIELDS),
        Route("GET", f"{label}/{{id}}", Labels.get, read, READ),
        Route("DELETE", f"{label}/{{id}}", Labels.delete, write, Event.LABEL_DELETE),
        Route("POST", f"{label}/{{id}}/add-task", Labels.add_task, write, relabel, Form.FIELDS),
        Route("POST", f"{label}/{{id}}/remove-task", Labels.remove_task, write, relabel, Form.FIELDS),
    )


def _training() -> tuple[Route, ...]:
    """The cloud's routes to stored images and all that is written about them."""
    read, write = Scope.DATASETS_READ, Scope.DATASETS_WRITE
    image, thing = "/recognition/v2/training-image", "/detection/v2/object"
    verification, point = "/annotate/v2/verification", "/annotate/v2/point"
    update, change, fields = Event.IMAGE_UPDATE, Event.OBJECT_CHANGE, Form.FIELDS
    return (
        *_tasks_and_labels("recognition"),
        Route("DELETE", "/recognition/v2/label/{id}/wipe", Labels.wipe, write, Event.LABEL_WIPE),
        Route("GET", "/recognition/v2/model/{id}", Tasks.model, read, READ),
        Route("DELETE", "/recognition/v2/model/{id}", Tasks.model, write, READ),
        Route("GET", image, TrainingImages.list, read, READ),
        Route("POST", image, TrainingImages.upload, write, Event.IMAGE_ADD, Form.UPLOAD),
        Route("POST", f"{image}/update", TrainingImages.update, write, update, fields),
        Route("GET", f"{image}/{{id}}", TrainingImages.get, read, READ),
        Route("PUT", f"{image}/{{id}}", TrainingImages.put, write, update, fields),
        Route("DELETE", f"{image}/{{id}}", TrainingImages.delete, write, Event.IMAGE_DELETE),
        Route("POST", f"{image}/{{id}}/add-label", TrainingImages.add_label, write, update, fields),
        Route("POST", f"{image}/{{id}}/update-label", TrainingImages.update_label, write, update, fields),
        Route("POST", f"{image}/{{id}}/remove-label", TrainingImages.remove_label, write, update, fields),
        *_tasks_and_labels("detection"),
        Route("POST", "/detection/v2/task/{id}/add-image", Tasks.add_image, write, Event.TASK_CHANGE, fields),
        Route("GET", thing, Objects.list, read, READ),
        Route("POST", thing, Objects.add, write, Event.OBJECT_ADD, fields),
        Route("GET", f"{thing}/{{id}}", Objects.get, read, READ),
        Route("PUT", f"{thing}/{{id}}", Objects.put, write, change, fields),
        Route("DELETE", f"{thing}/{{id}}", Objects.delete, write, Event.OBJECT_DELETE),
        Route("POST", f"{thing}/{{id}}/add-label", Objects.add_label, write, change, fields),
        Route("POST", f"{thing}/{{id}}/update-label", Objects.update_label, write, change, fields),
        Route("POST", f"{thing}/{{id}}/remove-label", Objects.remove_label, write, change, fields),
        Route("GET", verification, Annotate.list_verifications, read, READ),
        Route("POST", verification, Annotate.verify, write, Event.VERIFICATION_ADD, fields),
        Route("DELETE", f"{verification}/{{id}}", Annotate.unverify, write, Event.VERIFICATION_DELETE),
        Route("GET", point, Annotate.list_points, read, READ),
        Route("POST", point, Annotate.add_point, write, Event.POINT_ADD, fields),
        Route("DELETE", f"{point}/{{id}}", Annotate.delete_point, write, Event.POINT_DELETE),
    )


_READ_SEARCH = Scope.SEARCH_READ

ROUTES: tuple[Route, ...] = (
    Route("POST", "/authorization/v2/authorize", Account.authorize, Access.TOKEN, READ, Form.FIELDS),
    Route("GET", "/account/v2/user", Account.user, Access.TOKEN, READ),
    Route("GET", "/account/v2/details", Account.details, Access.TOKEN, READ),
    Route("GET", "/account/v2/workspace", Account.workspaces, Access.TOKEN, READ),
    Route("POST", "/recognition/v2/classify", Recognition.classify, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/tags/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/tagging/{id}/v2/tags", Recognition.tags, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/detection/v2/detect", Recognition.detect, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/photo/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS),
    Route(
        "POST", "/similarity/training/v2/descriptor", Recognition.descriptor, Scope.INFER, READ, Form.RECORDS
    ),
    Route("POST", "/dom_colors/generic/v2/dominantcolor", Colours.generic, Scope.INFER, READ, Form.RECORDS),
    Route("POST", "/dom_colors/product/v2/dominantcolor", Colours.product, Scope.INFER, READ, Form.RECORDS),
    Route("POST", REQUEST, Asynchronous.submit, Scope.INFER, Event.REQUEST_ADD, Form.RECORDS),
    Route("GET", REQUEST, Asynchronous.list, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}", Asynchronous.get, Scope.INFER, READ),
    Route("GET", f"{REQUEST}/{{id}}/status", Asynchronous.status, Scope.INFER, READ),
    Route("POST", f"{REQUEST}/{{id}}/cancel", Asynchronous.cancel, Scope.INFER, Event.REQUEST_CANCEL),
    *_search("/similarity/photos/v2"),
    *_search("/similarity/products-new/v2"),
    *_search("/similarity/custom/v2"),
    *_search("/photo/search/v2"),
    *_search("/similarity/products/v2"),
    *_search(MATCHING),
    Route("POST", f"{MATCHING}/visual_hash", ImageMatching.visual_hash, _READ_SEARCH, READ, Form.RECORDS),
    Route("POST", f"{MATCHING}/rank_images", ImageMatching.rank_images, _READ_SEARCH, READ, Form.QUERY),
    Route(
        "POST",
        f"{MATCHING}/remove_duplicates",
        ImageMatching.remove_duplicates,
        _READ_SEARCH,
        READ,
        Form.RECORDS,
    ),
    *_training(),
    Route("GET", "/v2", OpenInference.server, Access.TOKEN, READ),
    Route("GET", "/v2/health/live", OpenInference.live, Access.OPEN, READ),
    Route("GET", "/v2/health/ready", OpenInference.ready, Access.OPEN, READ),
    Route("POST", "/v2/repository/index", OpenInference.index, Scope.INFER, READ, Form.FIELDS),
    *_model("/v2/models/{name}"),
    *_model("/v2/models/{name}/versions/{version}"),
    *MANAGEMENT_ROUTES,
    Route("GET", "/files/{name}", Files.get, Access.LINK, READ),
    Route("GET", "/healthz", Probes.healthz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/readyz", Probes.readyz, Access.OPEN, READ, surfaces=EVERYWHERE),
    Route("GET", "/metrics", Probes.metrics, Access.OPEN, READ, surfaces=OPERATORS),
)
