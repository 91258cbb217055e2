-- Nothing for PUBLIC. grant_queue lets a role in; grant_usage lets it have queues of its own.
CREATE FUNCTION fanout.grant_usage(role regrole) RETURNS void
    AS 'MODULE_PATHNAME', 'fanout_grant_usage' LANGUAGE C VOLATILE;
COMMENT ON FUNCTION fanout.grant_usage IS 'lets a role use the schema and create queues of its own; for superusers';

REVOKE ALL ON ALL TABLES IN SCHEMA fanout FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA fanout FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA fanout FROM PUBLIC;
