# After a restart there is no place for all starts that rate limits should remember: what has none starts nothing until no
# start would count any more, and then it starts, or goes.
#
# Promise 5: no start is forgotten.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main');

sub ask
{
	return $node->safe_psql('postgres', $_[0]);
}

# Each of 1500 partitions of these queues starts a task, and another one waits. Those of the first one are remembered for
# an hour, and take all places that there will be.
my %period = (first => '1 hour', waits => '5 s', ends => '5 s');
foreach my $queue (qw(first waits ends))
{
	ask(<<"EOS");
SELECT fanout.create_queue('$queue', partition_rate_limit => 1, partition_rate_period => '$period{$queue}', lease => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('$queue', 'x', array_fill('{}'::jsonb, '{3000}'),
	partition_keys => ARRAY(SELECT 'key' || n % 1500 FROM generate_series(1, 3000) n));
EOS
	is(ask("SELECT count(*) FROM fanout.dequeue('$queue', 'w', max_tasks => 3000)"), 1500, "a start of each partition of $queue");
}
ask("SELECT fanout.create_queue('whole', rate_limit => 1, rate_period => '5 s', lease => '1 hour')");
ask("SELECT count(*) FROM fanout.enqueue_many('whole', 'x', '{1,2}')");
is(ask("SELECT count(*) FROM fanout.dequeue('whole', 'w', max_tasks => 2)"), 1, 'a start of a queue');

# So is this one's, and these a partition's, which has no task when the server starts
ask(<<'EOS');
SELECT fanout.create_queue('anew', rate_limit => 1, rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('anew', 'x', '{1,2}');
SELECT fanout.create_queue('again', partition_rate_limit => 4, partition_rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('again', 'x', '{1,2,3,4}', partition_key => 'p');
EOS
is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('anew', 'w')"), 1, 'a start of another one');
is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('again', 'w', max_tasks => 4)"), 4, 'all that a partition may start');
$node->append_conf('postgresql.conf', 'pg_fanout.max_rate_entries = 1024');
$node->restart;
wait_for_memory($node);
is(ask("SELECT used FROM fanout.pools WHERE pool = 'rate entries'"), 1024, 'after a restart all places are taken');

# They get places, but may have started something by then
ask("SELECT fanout.alter_queue('first', unset => '{partition_rate_limit}'), fanout.purge_queue('ends')");
is(ask("SELECT count(*) FROM fanout.complete((SELECT array_agg(lease) FROM fanout.leases WHERE queue = 'ends'))"), 1500, 'no partition of ends has a task');
is(ask("SELECT used FROM fanout.pools WHERE pool = 'rate entries'"), 0, 'all of them are free');
foreach my $queue (qw(waits whole))
{
	my $tasks = ask("SELECT ready + running FROM fanout.queues WHERE queue = '$queue'");

	ok($node->poll_query_until('postgres', <<"EOS"), "$queue goes on");
SELECT running = $tasks FROM (SELECT count(*) FROM fanout.dequeue('$queue', 'w', max_tasks => 3000)) d, fanout.queues WHERE queue = '$queue'
EOS
}
is(ask("SELECT count(*) FROM fanout.leases, fanout.stats WHERE queue IN ('waits', 'whole') AND claimed_at BETWEEN rebuild_began AND rebuild_began + interval '5 s'"), 0,
	'promise 5: but not before no start would count any more');
ask("SELECT count(*) FROM fanout.enqueue_many('again', 'x', '{5,6}', partition_key => 'p')");
is(ask("SELECT count(*) FROM fanout.dequeue('again', 'w', max_tasks => 2)"), 0, 'promise 5: a partition that comes back starts no more');
is(ask("SELECT count(*) FROM fanout.dequeue('anew', 'w')"), 0, 'promise 5: nor does a queue');
ask("SELECT fanout.alter_queue('anew', unset => '{rate_limit}')");
ask("SELECT fanout.alter_queue('anew', rate_limit => 1, rate_period => '1 hour')");
is(ask("SELECT count(*) FROM fanout.dequeue('anew', 'w')"), 1, 'but with a rate limit that is new');
ask("SELECT fanout.drop_queue(queue, force => true) FROM fanout.queues WHERE queue <> 'ends'");
ok($node->poll_query_until('postgres', "SELECT used = 0 FROM fanout.pools WHERE pool = '$_'"), "all is free in the end: $_")
  foreach 'lanes', 'limited lanes', 'rate entries';

# Where one place is left, a start that needs two, for its queue and its partition, does not get one of them and keep it
ask(<<'EOS');
SELECT fanout.create_queue('all but one', partition_rate_limit => 1, partition_rate_period => '1 hour');
SELECT fanout.create_queue('two', rate_limit => 10, rate_period => '1 hour', partition_rate_limit => 10, partition_rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('all but one', 'x', array_fill('{}'::jsonb, '{1023}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 1023) n));
SELECT fanout.enqueue('two', 'x', partition_key => 'p');
EOS
is(ask("SELECT count(*) FROM fanout.dequeue('all but one', 'w', max_tasks => 1023)"), 1023, 'one place is left');
ask("BEGIN; SELECT FROM fanout.dequeue('two', 'w'); ROLLBACK");
ask("SELECT fanout.drop_queue('all but one', force => true)");
is(ask("SELECT count(*) FROM fanout.dequeue('two', 'w', wait => '20 s')"), 1, 'it starts when there are more');
ask("SELECT fanout.drop_queue('two', force => true)");

# Nor is there a place for the partition itself, until others need theirs no more
ask(<<'EOS');
SELECT fanout.create_queue('many', partition_rate_limit => 1, partition_rate_period => '1 hour');
SELECT fanout.create_queue('one', partition_rate_limit => 4, partition_rate_period => '1 hour');
SELECT count(*) FROM fanout.enqueue_many('many', 'x', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 16) n));
SELECT count(*) FROM fanout.enqueue_many('one', 'x', array_fill('{}'::jsonb, '{8}'), partition_key => 'p');
EOS
is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('many', 'w', max_tasks => 16)"), 16, 'a start of each of 16 partitions');
is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('one', 'w', max_tasks => 8)"), 4, 'all that another one may start');
$node->append_conf('postgresql.conf', 'pg_fanout.max_lanes = 16');
$node->restart;
wait_for_memory($node);
is(ask("SELECT count(*) FROM fanout.partitions WHERE queue = 'one'"), 0, 'after a restart there is no room for that');
ask("SELECT fanout.alter_queue('many', unset => '{partition_rate_limit}')");
ok($node->poll_query_until('postgres', "SELECT ready = 4 FROM fanout.partitions WHERE queue = 'one'"), 'it comes back');
is(ask("SELECT count(*) FROM fanout.dequeue('one', 'w', max_tasks => 8)"), 0, 'promise 5: and starts no more');

# One that a restart finds a place for, but none for its starts, and that leaves memory again, is not forgotten by another
# restart before: what that one knew may be too old for the partition's own period
ask("SELECT fanout.drop_queue(q, force => true) FROM unnest('{many,one}'::text[]) q");
$node->append_conf('postgresql.conf', "pg_fanout.max_lanes = 64\npg_fanout.max_limited_lanes = 32");
$node->restart;
wait_for_memory($node);
ask(<<'EOS');
SELECT fanout.create_queue('long', partition_rate_limit => 1, partition_rate_period => '1 hour', lease => '2 hours');
SELECT fanout.create_queue('short', partition_rate_limit => 4, partition_rate_period => '10 s');
SELECT count(*) FROM fanout.enqueue_many('long', 'x', array_fill('{}'::jsonb, '{16}'), partition_keys => ARRAY(SELECT 'key' || n FROM generate_series(1, 16) n));
SELECT count(*) FROM fanout.enqueue_many('short', 'x', array_fill('{}'::jsonb, '{4}'), partition_key => 'p');
EOS
$node->poll_query_until('postgres', "SELECT clock_timestamp() > rebuild_began + interval '11 s' FROM fanout.stats") or die;
is(ask("SELECT count(*) FROM fanout.dequeue('long', 'w', max_tasks => 16)"), 16, 'the longer period has all places');
is(ask("SELECT count(fanout.complete(lease)) FROM fanout.dequeue('short', 'w', max_tasks => 4)"), 4, 'the shorter one has started what it may');
$node->append_conf('postgresql.conf', 'pg_fanout.max_limited_lanes = 16');
$node->restart;
wait_for_memory($node);
is(ask("SELECT used FROM fanout.pools WHERE pool = 'limited lanes'"), 16, 'after a restart all places are taken');
ask("SELECT fanout.alter_queue('long', unset => '{partition_rate_limit}')");
ask("SELECT count(*) FROM fanout.enqueue_many('short', 'x', array_fill('{}'::jsonb, '{4}'), partition_key => 'p')");
ok($node->poll_query_until('postgres', <<'EOS'), 'all of the partition come');
SELECT ready = 0 FROM (SELECT count(fanout.complete(lease)) FROM fanout.dequeue('short', 'w', max_tasks => 4)) d, fanout.queues WHERE queue = 'short'
EOS
is( ask(<<'EOS'), 4, 'promise 5: no more than it may within its period');
SELECT max(n) FROM (SELECT count(*) OVER (ORDER BY claimed_at RANGE '10 s' PRECEDING) AS n FROM fanout.attempts WHERE queue = 'short') w
EOS

$node->stop;
done_testing();
