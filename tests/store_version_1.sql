-- The store of the first build, as SQLite's .dump tells it.
BEGIN TRANSACTION;
CREATE TABLE adapter_versions (
	tenant VARCHAR(63) NOT NULL, 
	adapter VARCHAR(63) NOT NULL, 
	version INTEGER NOT NULL, 
	digest VARCHAR(80) NOT NULL, 
	method VARCHAR(16) NOT NULL, 
	base_digest VARCHAR(80) NOT NULL, 
	manifest TEXT NOT NULL, 
	PRIMARY KEY (tenant, adapter, version), 
	FOREIGN KEY(tenant, adapter) REFERENCES adapters (tenant, id) ON DELETE CASCADE
);
CREATE TABLE adapters (
	tenant VARCHAR(63) NOT NULL, 
	id VARCHAR(63) NOT NULL, 
	create_time FLOAT NOT NULL, 
	last_version INTEGER NOT NULL, 
	PRIMARY KEY (tenant, id)
);
CREATE TABLE aliases (
	tenant VARCHAR(63) NOT NULL, 
	adapter VARCHAR(63) NOT NULL, 
	alias VARCHAR(63) NOT NULL, 
	version INTEGER NOT NULL, 
	previous_version INTEGER, 
	etag INTEGER NOT NULL, 
	update_time FLOAT NOT NULL, 
	PRIMARY KEY (tenant, adapter, alias), 
	FOREIGN KEY(tenant, adapter, version) REFERENCES adapter_versions (tenant, adapter, version)
);
CREATE TABLE datasets (
	tenant VARCHAR(63) NOT NULL, 
	id VARCHAR(63) NOT NULL, 
	digest VARCHAR(80) NOT NULL, 
	row_kind VARCHAR(32) NOT NULL, 
	rows BIGINT NOT NULL, 
	size_bytes BIGINT NOT NULL, 
	create_time FLOAT NOT NULL, 
	source TEXT NOT NULL, 
	PRIMARY KEY (tenant, id)
);
CREATE TABLE job_events (
	job_id VARCHAR(63) NOT NULL, 
	number BIGINT NOT NULL, 
	time FLOAT NOT NULL, 
	body TEXT NOT NULL, 
	PRIMARY KEY (job_id, number), 
	FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
CREATE TABLE jobs (
	sequence INTEGER NOT NULL, 
	tenant VARCHAR(63) NOT NULL, 
	id VARCHAR(63) NOT NULL, 
	kind VARCHAR(16) NOT NULL, 
	state VARCHAR(16) NOT NULL, 
	adapter VARCHAR(63) NOT NULL, 
	dataset_ids TEXT NOT NULL, 
	document TEXT NOT NULL, 
	first_event BIGINT NOT NULL, 
	last_event BIGINT NOT NULL, 
	lease_owner VARCHAR(128) NOT NULL, 
	lease_epoch BIGINT NOT NULL, 
	lease_until FLOAT NOT NULL, 
	PRIMARY KEY (sequence), 
	UNIQUE (id)
);
CREATE TABLE meta (
	"key" VARCHAR(32) NOT NULL, 
	value TEXT, 
	PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('schema_version','1');
CREATE TABLE requests (
	tenant VARCHAR(63) NOT NULL, 
	request_id VARCHAR(128) NOT NULL, 
	fingerprint VARCHAR(64) NOT NULL, 
	resource TEXT NOT NULL, 
	create_time FLOAT NOT NULL, 
	PRIMARY KEY (tenant, request_id)
);
CREATE TABLE uploads (
	tenant VARCHAR(63) NOT NULL, 
	id VARCHAR(63) NOT NULL, 
	dataset_id VARCHAR(63) NOT NULL, 
	create_time FLOAT NOT NULL, 
	PRIMARY KEY (tenant, id)
);
CREATE INDEX jobs_by_tenant ON jobs (tenant, sequence);
CREATE INDEX ix_jobs_state ON jobs (state);
CREATE INDEX ix_datasets_digest ON datasets (digest);
CREATE INDEX ix_requests_create_time ON requests (create_time);
CREATE INDEX ix_adapter_versions_digest ON adapter_versions (digest);
COMMIT;
