# Batches with tasks in several segments of the log: what has ended of one stays, in whichever segment, as long as a task of
# it in another one has not, as README says under "Retention".

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "pg_fanout.retention = -1\nautovacuum = off\n");

sub query { return $node->safe_psql('postgres', $_[0]); }
sub becomes { return ok($node->poll_query_until('postgres', $_[0]), $_[1]); }

# A connection that has the new value was made when the postmaster had told all others.
sub set_retention
{
	my ($retention) = @_;

	query("ALTER SYSTEM SET pg_fanout.retention = '$retention'");
	query('SELECT pg_reload_conf()');
	$node->poll_query_until('postgres', "SELECT current_setting('pg_fanout.retention') = '$retention'") or die "the retention is not $retention";
	return;
}

# Tasks of the batch, in the current segment
sub add_ended
{
	my ($batch) = @_;

	query("SELECT fanout.enqueue('q', 'ended', batch => $batch)");
	query("SELECT fanout.complete(lease, '1') FROM fanout.dequeue('q', 'w')");
	return;
}
sub add_unfinished { return query("SELECT fanout.enqueue('q', 'unfinished', batch => $_[0], delay => '1 day')"); }
sub tasks { return query("SELECT string_agg(name || ' ' || state, ', ' ORDER BY task) FROM fanout.tasks WHERE batch = $_[0]"); }

query("SELECT fanout.create_queue('q')");

# more of them than the keeper looks at in one go
query('SELECT count(fanout.seal_batch(fanout.create_batch())) FROM generate_series(1, 1000)');
my ($forward, $back, $over) = split /\n/, query('SELECT fanout.create_batch() FROM generate_series(1, 3)');

add_ended($_) foreach $forward, $over;
add_unfinished($back);
query('SELECT fanout._next_segment()');
add_ended($_) foreach $back, $over;
add_unfinished($forward);
query('SELECT fanout._next_segment()');
query("SELECT fanout.seal_batch(batch) FROM fanout.batches WHERE NOT sealed");

# The first segment is in use, so the second one goes first
my $reader = session($node);
$reader->query_safe('BEGIN; SELECT count(*) FROM fanout.outcome_1');
set_retention('1s');
becomes('SELECT retired_segments > 0 FROM fanout.stats', 'a segment is retired');
is(query("SELECT state FROM fanout.segments WHERE segment = 1"), 'older', 'but not the first one');
is(tasks($over), 'ended succeeded', 'of a batch that has ended a task goes');
is(tasks($back), 'unfinished scheduled, ended succeeded', 'a batch with an unfinished task in an older segment stays');
is(tasks($forward), 'ended succeeded, unfinished scheduled', 'and so does one of which that is moved');

$reader->query_safe('COMMIT');
$reader->quit;
becomes("SELECT NOT EXISTS (SELECT FROM fanout.tasks WHERE batch = $over)", 'the first one is retired');
is(tasks($back), 'unfinished scheduled, ended succeeded', 'and all of them stay');
is(tasks($forward), 'ended succeeded, unfinished scheduled', 'whatever is moved first');

# They can be collected then
set_retention('1h');
query("SELECT fanout.cancel(task) FROM fanout.tasks WHERE name = 'unfinished'");
is(query("SELECT string_agg(status, ' ' ORDER BY ordinal) FROM fanout.collect($back, '10 s')"), 'cancelled succeeded', 'it is collected when it has ended');
is(query("SELECT string_agg(status, ' ' ORDER BY ordinal) FROM fanout.collect($forward, '10 s')"), 'succeeded cancelled', 'and so is the other one');

$node->stop;
done_testing();
