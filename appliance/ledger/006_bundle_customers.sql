-- Who may use a task: ids in JSON, NULL for everybody.

ALTER TABLE bundle_tasks ADD COLUMN customers TEXT;
