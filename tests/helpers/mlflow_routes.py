"""Prints, as JSON, each (method, path) that MLflow registers when accounts are asked for; a process of its own, for its globals."""

import json
import os
import re
import sys
from pathlib import Path

folder = Path(sys.argv[1])
lines = ["[mlflow]", "default_permission = NO_PERMISSIONS", f"database_uri = sqlite:///{folder}/auth.db", "admin_username = admin"]
lines.append("authorization_function = vit_search.tracking.server_app:authenticate")
(folder / "auth.ini").write_text("\n".join(lines) + "\n")
os.environ |= {"MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"), "MLFLOW_AUTH_ADMIN_PASSWORD": "long-enough-1234"}
os.environ |= {"MLFLOW_FLASK_SERVER_SECRET_KEY": "any", "_MLFLOW_SGI_NAME": "uvicorn", "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true"}
os.environ["_MLFLOW_SERVER_FILE_STORE"] = f"sqlite:///{folder}/mlflow.db"

from mlflow.server import app as flask_app  # noqa: E402
from mlflow.server.auth import create_app  # noqa: E402

served = create_app()
found = {(method, re.sub(r"<[^>]*>", "1", rule.rule)) for rule in flask_app.url_map.iter_rules() for method in rule.methods or ()}
found |= {(method.upper(), re.sub(r"{[^}]*}", "1", path)) for path, methods in served.openapi()["paths"].items() for method in methods}
json.dump(sorted(found), sys.stdout)
