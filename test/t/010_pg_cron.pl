# pg_cron enqueues on schedule, a worker that waits without a snapshot finishes the task.
#
# Promise 1: a task is visible once its enqueuer, here a job of pg_cron, has committed, and then at once.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $libdir = qx(pg_config --pkglibdir);
chomp $libdir;
plan skip_all => 'pg_cron is not installed' unless -e "$libdir/pg_cron.so";

my $node = PostgreSQL::Test::Cluster->new('main');
$node->init;
$node->append_conf('postgresql.conf', <<EOC);
shared_preload_libraries = 'pg_cron,pg_fanout'
cron.database_name = 'postgres'
cron.host = '@{[ $node->host ]}'
EOC
$node->start;
$node->safe_psql('postgres', <<'EOS');
CREATE EXTENSION pg_fanout;
CREATE EXTENSION pg_cron;
SELECT fanout.create_queue('scheduled');
SELECT cron.schedule('every minute', '* * * * *', $$SELECT fanout.enqueue('scheduled', 'tick', to_jsonb(now()))$$);
EOS

# A job runs at the next full minute.
is($node->safe_psql('postgres', "CALL fanout.dequeue_wait('scheduled', 'w1', '100 s', NULL)"),
	't', 'a job of pg_cron wakes the worker');
my ($lease, $task, $name) = split /\|/, $node->safe_psql('postgres',
	"SELECT lease, task, name FROM fanout.dequeue('scheduled', 'w1')");
is($name, 'tick', 'the worker gets the task');
is($node->safe_psql('postgres', "SELECT fanout.complete($lease, '\"tock\"')"), 't', 'and finishes it');
is($node->safe_psql('postgres', "SELECT status, result FROM fanout.result($task)"), 'succeeded|"tock"', 'with a result');
ok($node->poll_query_until('postgres', "SELECT status = 'succeeded' FROM cron.job_run_details ORDER BY runid LIMIT 1"),
	'pg_cron counts its job as succeeded');

$node->stop;
done_testing();
