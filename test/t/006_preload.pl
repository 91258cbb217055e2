# Without the library in shared_preload_libraries, or with another version of it than the catalogue's, every function
# says in words what is wrong, and nothing crashes.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

$node->safe_psql('postgres', "SELECT fanout.create_queue('jobs')");
$node->safe_psql('postgres', "SELECT fanout.enqueue('jobs', 'waits')");
$node->safe_psql('postgres', 'SELECT fanout.create_batch()');

# Another version in the catalogue, as after an upgrade of the package without a restart
$node->safe_psql('postgres', "UPDATE pg_extension SET extversion = '0.0.9' WHERE extname = 'pg_fanout'");
foreach my $sql (
	"SELECT fanout.enqueue('jobs', 'x')",
	"SELECT * FROM fanout.dequeue('jobs')",
	"SELECT fanout.create_queue('new')")
{
	is(sqlstate($node, $sql), '55000', "another version: $sql");
}
my ($ret, $stdout, $stderr) = $node->psql('postgres', "SELECT fanout.enqueue('jobs', 'x')");
like($stderr, qr/0\.0\.9/, 'the message names the version of the catalogue');
$node->safe_psql('postgres', "UPDATE pg_extension SET extversion = default_version"
	  . " FROM pg_available_extensions a WHERE a.name = extname AND extname = 'pg_fanout'");
is(sqlstate($node, "SELECT fanout.enqueue('jobs', 'y')"), '', 'the right version again');

# Not preloaded
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;

# Each C function of the extension, with arguments of the right types
my @calls = split /\n/, $node->safe_psql('postgres', <<'EOS');
SELECT format('%s %I.%I(%s)', CASE p.prokind WHEN 'p' THEN 'CALL' ELSE 'SELECT * FROM' END, n.nspname, p.proname,
	string_agg(CASE WHEN t.typcategory = 'A' THEN '''{}''::' || t.oid::regtype
					WHEN t.typcategory = 'S' THEN '''jobs''::text'
					WHEN t.typname IN ('int4', 'int8', 'oid') THEN '1::' || t.typname
					WHEN t.typname = 'regrole' THEN 'current_user::regrole'
					WHEN t.typname = 'timestamptz' THEN 'now()'
					WHEN t.typname = 'interval' THEN '''1 s''::interval'
					WHEN t.typname = 'jsonb' THEN '''{}''::jsonb'
					ELSE 'NULL::' || t.oid::regtype END, ', ' ORDER BY a.n))
  FROM pg_depend d
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pg_fanout'
  JOIN pg_proc p ON p.oid = d.objid
  JOIN pg_language l ON l.oid = p.prolang AND l.lanname = 'c'
  JOIN pg_namespace n ON n.oid = p.pronamespace
  LEFT JOIN unnest(p.proargtypes) WITH ORDINALITY a (type, n) ON true
  LEFT JOIN pg_type t ON t.oid = a.type
 WHERE p.prorettype <> 'trigger'::regtype AND d.deptype = 'e' AND d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
 GROUP BY p.oid, n.nspname, p.proname, p.prokind
 ORDER BY p.oid::regprocedure::text;
EOS
cmp_ok(scalar @calls, '>', 40, 'the functions of the extension');
my ($out, $errors);
$node->psql('postgres', join('', map { "$_;\n" } @calls),
	on_error_stop => 0, stdout => \$out, stderr => \$errors,
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
foreach my $n (1 .. @calls)
{
	# psql names the line, that is the call, of each error.
	like($errors, qr/<stdin>:$n: ERROR:  55000: [^\n]*\n(?!psql)[^\n]*shared_preload_libraries/, "not preloaded: $calls[$n - 1]");
}
foreach my $view (qw(queues tasks leases workers batches))
{
	is(sqlstate($node, "SELECT * FROM fanout.$view"), '55000', "not preloaded: view $view");
}

is(sqlstate($node, "LOAD 'pg_fanout'; SELECT 1"), '', 'LOAD does no harm');
is(sqlstate($node, "LOAD 'pg_fanout'; SELECT fanout.enqueue('jobs', 'x')"), '55000', 'nor does it help');

$node->safe_psql('postgres', 'CREATE DATABASE other');
($ret, $stdout, $stderr) = $node->psql('other', 'CREATE EXTENSION pg_fanout',
	extra_params => [ '-v', 'VERBOSITY=verbose' ]);
like($stderr, qr/ERROR:  55000:/, 'CREATE EXTENSION is refused');
like($stderr, qr/shared_preload_libraries/, 'it says what to set');
is( $node->safe_psql('other', "SELECT count(*) FROM pg_namespace WHERE nspname = 'fanout'"),
	0, 'and leaves nothing behind');

# Nothing that was there is lost.
$node->append_conf('postgresql.conf', "shared_preload_libraries = 'pg_fanout'");
$node->restart;
is( $node->safe_psql('postgres', "SELECT name FROM fanout.dequeue('jobs', 'w1', max_tasks => 5) ORDER BY 1"),
	"waits\ny", 'preloaded again, work goes on');

# One can be rid of the extension without it.
$node->append_conf('postgresql.conf', "shared_preload_libraries = ''");
$node->restart;
is(sqlstate($node, 'DROP EXTENSION pg_fanout'), '', 'DROP EXTENSION does not need the library');

# Links between elements of the pools reach so far.
$node->stop;
command_fails_like(
	[
		'postgres', '-D', $node->data_dir, '-c', 'shared_preload_libraries=pg_fanout', '-c', 'pg_fanout.max_tracked_tasks=67108864',
		'-c', 'pg_fanout.max_lanes=67108864', '-C', 'shared_memory_size'
	],
	qr/pg_fanout would need more than 16 GB of shared memory/,
	'pools that are too large are refused');

done_testing();
