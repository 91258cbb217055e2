# The next version of the extension, with work in flight: the library of one version with the catalogue of another says
# so, loses nothing, and goes on once both are the same.
#
# Promise 7: leases, delays and what waits are there after the update. Promise 10: it is not for strangers to update.

use strict;
use warnings FATAL => 'all';

use File::Basename;
use File::Path qw(make_path);
use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my ($old) = slurp_file('pg_fanout.control') =~ /^default_version *= *'(.*)'/m;
my $new = $old =~ s/\d/9/r;
isnt($new, $old, "from $old to $new");

# An installation of our own, as the next version is put into it: PostgreSQL finds its files relative to its programs.
my $root = PostgreSQL::Test::Utils::tempdir();
my %dirs;
foreach my $dir (qw(bindir pkglibdir sharedir))
{
	my $from = `pg_config --$dir`;
	chomp $from;
	$dirs{$dir} = "$root$from";
	make_path($dirs{$dir});
	system_or_bail('cp', '-r', "$from/.", $dirs{$dir});
}
$ENV{PATH} = "$dirs{bindir}:$ENV{PATH}";
my $library = "$dirs{pkglibdir}/pg_fanout.so";
my $control = "$dirs{sharedir}/extension/pg_fanout.control";
my %libraries = ($old => slurp_file($library));

# The next version's library is this one, but for what it says of its version.
$libraries{$new} = $libraries{$old};
ok(($libraries{$new} =~ s/\x{00}\Q$old\E\x{00}/\x{00}$new\x{00}/g) > 0, 'the library of the next version');

# As install(1) does: what the server has mapped is another file from then on.
sub put
{
	my ($file, $text) = @_;

	unlink $file;
	open(my $handle, '>:raw', $file) or die "$file: $!";
	print $handle $text;
	close $handle or die "$file: $!";
	chmod 0755, $file;
	return;
}

sub install_version
{
	my ($version) = @_;

	put($library, $libraries{$version});
	put($control, slurp_file($control) =~ s/^default_version.*$/default_version = '$version'/mr);
	return;
}

my $node = new_node('main', conf => "max_worker_processes = 16\nlog_min_messages = warning\npg_fanout.max_wait = '3 min'");
$node->safe_psql('postgres', 'CREATE ROLE stranger; CREATE DATABASE other');
$node->safe_psql('other', 'CREATE EXTENSION pg_fanout');

sub query { return $node->safe_psql('postgres', $_[0]); }
sub restart { $node->stop; $node->start; return; }
sub logged { my $count = () = slurp_file($node->logfile) =~ /pg_fanout stands still in database "postgres"/g; return $count; }
sub item { return query("SELECT value FROM fanout.status() WHERE item = '$_[0]'"); }

# SQLSTATE and words of an error
sub error
{
	my ($sql) = @_;
	my ($ret, $stdout, $stderr) = $node->psql('postgres', $sql, extra_params => [ '-v', 'VERBOSITY=verbose' ]);

	return $stderr =~ s/^LOCATION.*\n?//mgr =~ s/^psql:<stdin>:\d+: //mgr;
}

# What is in flight
query(<<'EOS');
SELECT fanout.create_queue('jobs', lease => '10 min', backoff => '1 h', backoff_max => '1 h');
SELECT fanout.create_queue('empty');
SELECT fanout.enqueue_many('jobs', 'some', '{1,2,3,4,5}');
SELECT fanout.enqueue('jobs', 'tomorrow', delay => '1 day');
SELECT fanout.enqueue('jobs', 'late', deadline => now() + '1 day', partition_key => 'p', key => 'k');
EOS
my @leases = split /\n/, query("SELECT lease FROM fanout.dequeue('jobs', 'w1', max_tasks => 3)");
query("SELECT fanout.checkpoint($leases[0], 'read', '1'); SELECT fanout.fail($leases[1], 'not yet')");
$node->poll_query_until('postgres', "SELECT count(DISTINCT lease) = 3 FROM fanout.attempt")
  or die 'the journal was not written';
my $look = 'SELECT task, state, attempt, lease, worker, run_at, deadline FROM fanout.tasks ORDER BY 1';
my $was = query($look);

# The script of the next version changes a function and makes another one.
put("$dirs{sharedir}/extension/pg_fanout--$old--$new.sql", <<'EOS');
CREATE FUNCTION fanout.next_version(task bigint) RETURNS text
    LANGUAGE sql AS $$ SELECT state FROM fanout.tasks t WHERE t.task = next_version.task $$;
DROP FUNCTION fanout.release(bigint[], interval);
CREATE FUNCTION fanout.release(leases bigint[], delay interval DEFAULT NULL, reason text DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_release_many' LANGUAGE C VOLATILE;
EOS
put("$dirs{sharedir}/extension/pg_fanout--$new--$old.sql", <<'EOS');
DROP FUNCTION fanout.next_version(bigint);
DROP FUNCTION fanout.release(bigint[], interval, text);
CREATE FUNCTION fanout.release(leases bigint[], delay interval DEFAULT NULL) RETURNS SETOF bigint
    AS 'MODULE_PATHNAME', 'fanout_release_many' LANGUAGE C VOLATILE;
EOS

# 1. The next version is installed under the running server, which goes on; to update it then is refused, and disturbs
# nobody: neither who waits nor who has a transaction open.
install_version($new);
my $waiter = start_client($node, "SELECT task FROM fanout.dequeue('empty', 'w2', wait => '150 s')");
my $open = session($node);
$open->query_safe("BEGIN; SELECT fanout.enqueue('empty', 'of the open transaction')");
$node->poll_query_until('postgres', "SELECT waiting_workers = 1 FROM fanout.queues WHERE queue = 'empty'") or die 'nobody waits';
foreach my $statement ('ALTER EXTENSION pg_fanout UPDATE', "ALTER EXTENSION pg_fanout UPDATE TO '$new'",
	"DO 'BEGIN ALTER EXTENSION pg_fanout UPDATE; END'")
{
	like(error($statement), qr/^ERROR:  55000: pg_fanout cannot be updated to version \Q$new\E, as the preloaded library is version \Q$old\E\nDETAIL:  Nothing would go on.*\nHINT:  Install version \Q$new\E, restart/,
		"before the restart: $statement");
}
is(error("ALTER EXTENSION pg_fanout UPDATE TO '$old'") =~ s/^NOTICE.*\n//r, '', 'an update to the version that is there');
is(item('state'), 'ready', 'work goes on');
$open->query_safe('COMMIT');
ok(finish_clients($waiter), 'who waited');
like(client_output($waiter), qr/^\d+$/, 'got the task of the transaction that was open');
$open->quit;
is(query($look . ' LIMIT 7'), $was, 'nothing has changed');

# 2. The new library, with the old catalogue. Every function throws, whatever it is given: no crash, no silence.
my $wrong = qr/^ERROR:  55000: the preloaded pg_fanout library is version \Q$new\E, the extension in this database is version \Q$old\E\nDETAIL:  No function works.*\nHINT:  If the library is newer, run ALTER EXTENSION pg_fanout UPDATE/;
restart();
sub is_refused
{
	my ($what, $expected) = @_;
	my @calls = split /\n/, query(<<'EOS');
SELECT CASE p.prokind WHEN 'p' THEN 'CALL ' ELSE 'SELECT * FROM ' END || p.oid::regproc || '(' ||
       coalesce((SELECT string_agg(CASE WHEN p.proisstrict THEN '''1''' ELSE 'NULL' END || '::' || format_type(t, NULL), ', ' ORDER BY n)
                   FROM unnest(p.proargtypes::oid[] || CASE WHEN p.prokind = 'p' THEN '{bool}'::regtype[]::oid[] ELSE '{}' END)
                        WITH ORDINALITY AS a (t, n)
                  WHERE n <= CASE WHEN p.prokind = 'p' THEN cardinality(p.proargmodes) ELSE p.pronargs END), '') || ')'
  FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
 WHERE p.pronamespace = 'fanout'::regnamespace AND l.lanname = 'c' AND p.prorettype <> 'trigger'::regtype AND p.proname <> 'status'
 ORDER BY 1
EOS
	my @others = map { my $error = error($_); $error =~ $expected ? () : "$_: $error" } @calls, 'SELECT * FROM fanout.tasks', 'TABLE fanout.queues';
	cmp_ok(scalar(@calls), '>', 60, "$what: functions");
	is(join("\n", @others), '', "$what: each of them says so");
	is(item('state'), 'wrong version', "$what: and the status");
	return;
}
is_refused('new library', $wrong);
is(logged(), 1, 'new library: one line in the log');
is(join(' ', processes($node, 'keeper')), '', 'new library: there is no keeper');
is(sqlstate($node, 'SET ROLE stranger; ALTER EXTENSION pg_fanout UPDATE'), '42501', 'who may not update does not');

# One database after the other: a session that was there before goes on with it.
my $session = session($node);
is(session_sqlstate($session, "SELECT fanout.enqueue('jobs', 'x')"), '55000', 'a session before the update');
my $updater = session($node);
$updater->query_safe('BEGIN; ALTER EXTENSION pg_fanout UPDATE');
is(session_sqlstate($session, "SELECT fanout.enqueue('jobs', 'x')"), '55000', 'while the update is open');
$updater->query_safe('ROLLBACK');
is(session_sqlstate($session, "SELECT fanout.enqueue('jobs', 'x')"), '55000', 'and rolled back');
$updater->query_safe('BEGIN; ALTER EXTENSION pg_fanout UPDATE; COMMIT');
$updater->quit;
wait_for_memory($node);
is(query($look . ' LIMIT 7'), $was, 'promise 7: after the update: what ran, waits for another attempt, for tomorrow, for its deadline');
is($session->query("SELECT fanout.complete($leases[0], '\"done\"')"), 't', 'the session goes on, the lease is held');
$session->quit;
is(query("SELECT fanout.next_version(task) FROM fanout.tasks WHERE worker = 'w1' AND state = 'succeeded'"), 'succeeded', 'the new function');
is(query("SELECT count(*) FROM fanout.release('{$leases[2]}'::bigint[], reason => 'changed')"), 1, 'the changed function');
is(query("SELECT value FROM fanout.dequeue('jobs', 'w3') d, fanout.checkpoint(d.lease, 'again', '2') value"), 2, 'work goes on');
is(logged(), 1, 'no further line');
is($node->safe_psql('other', "SELECT value FROM fanout.status() WHERE item = 'state'"), 'wrong version', 'the other database waits for its update');
$node->safe_psql('other', 'ALTER EXTENSION pg_fanout UPDATE');
wait_for_memory($node, 'other');

# 3. The old library, with the new catalogue: as after a downgrade, or on a standby that was forgotten.
query("SELECT fanout.enqueue('jobs', 'of the new version')");
install_version($old);
restart();
is_refused('old library', qr/^ERROR:  55000: the preloaded pg_fanout library is version \Q$old\E, the extension in this database is version \Q$new\E\nDETAIL:  No function works.*\nHINT:  .*If it is older, install version \Q$new\E and restart/);
is(logged(), 2, 'old library: one line more');
$node->safe_psql('postgres', 'CREATE DATABASE third');
is(sqlstate($node, "CREATE EXTENSION pg_fanout VERSION '$old'", 'third'), '', 'another database gets the version of the library');

my $dump = "$root/old.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump calls none of the functions');

query("ALTER EXTENSION pg_fanout UPDATE TO '$old'");
wait_for_memory($node);
is(query("SELECT name FROM fanout.tasks WHERE state = 'ready' ORDER BY task DESC LIMIT 1"), 'of the new version', 'back with the old version');
is($node->safe_psql('other', "SELECT value FROM fanout.status() WHERE item = 'extension version'"), $new, 'each database for itself');
is($node->safe_psql('third', "SELECT value FROM fanout.status() WHERE item = 'extension version'"), $old, 'and the third');

$node->stop;
done_testing();
