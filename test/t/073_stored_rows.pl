# A row of fanout.task is stored up to its last column that has a value: the header of most tasks' rows is 8 bytes shorter, and
# what is left out is NULL wherever it is read. Rows that others have written, with all columns, are read as well, and a
# column that an operator adds to the log is in nobody's way, or no row is written.
#
# Promise 7: no task that is unfinished is lost.

use strict;
use warnings FATAL => 'all';

use FindBin;
use lib $FindBin::RealBin;

use FanoutTest;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = new_node('main', conf => "fsync = off\nautovacuum = off");

sub query { return $node->safe_psql('postgres', $_[0]); }

query('CREATE EXTENSION pageinspect');
query('CREATE EXTENSION amcheck');
query("SELECT fanout.create_queue('q'), fanout.create_queue('aging', aging => '1 s')");

# By task: how many columns its row has, and the bytes of its header
sub stored
{
	return query('SELECT t.id, t_infomask2 & 2047, t_hoff FROM fanout.task_1 t, heap_page_items(get_raw_page(\'fanout.task_1\', 0))'
		  . ' WHERE t.ctid = t_ctid ORDER BY t.id');
}

my $many = "ARRAY['{\"n\": 1}'::jsonb, '{\"n\": 2}']";
query(<<EOS);
SELECT fanout.enqueue('q', 'name');
SELECT fanout.enqueue('q', 'args', '{"n": 1}');
SELECT fanout.fan_out('q', 'batch', $many);
SELECT fanout.fan_out('q', 'partition', $many, partition_keys => ARRAY['a', NULL]);
SELECT fanout.enqueue('q', 'priority', priority => 1);
SELECT fanout.enqueue('q', 'cost', cost => 2, partition_key => 'a');
SELECT fanout.enqueue('q', 'group', partition_key => 'a', fair_group => 'g');
SELECT fanout.enqueue('q', 'key', key => 'k');
SELECT fanout.enqueue('aging', 'rank', priority => 1);
EOS
is(stored(), <<'EOS' =~ s/\n\z//r, 'a row ends with its last value, and with eight columns its header is short');
1|4|24
2|5|24
3|6|24
4|6|24
5|8|24
6|6|24
7|9|32
8|16|32
9|17|32
10|18|32
11|13|32
EOS

my $columns = 'id, (SELECT q.name FROM fanout.queue q WHERE q.id = queue), name, args, batch, lane IS NOT NULL, partition_key, priority, run_at, parent, max_attempts, rank IS NOT NULL, deadline, key_until, cost, fair_group, key';
my $rows = query("SELECT $columns FROM fanout.task ORDER BY id");
is($rows, <<'EOS' =~ s/\n\z//r, 'the others are NULL');
1|q|name|||f||||||f|||||
2|q|args|{"n": 1}||f||||||f|||||
3|q|batch|{"n": 1}|1|f||||||f|||||
4|q|batch|{"n": 2}|1|f||||||f|||||
5|q|partition|{"n": 1}|2|t|a|||||f|||||
6|q|partition|{"n": 2}|2|f||||||f|||||
7|q|priority|||f||1||||f|||||
8|q|cost|||t|a|||||f|||2||
9|q|group|||t|a|||||f||||g|
10|q|key|||f||||||f|||||k
11|aging|rank|||f||1||||t|||||
EOS
is(query("SELECT count(*) FROM verify_heapam('fanout.task_1')"), 0, 'PostgreSQL finds nothing amiss with the rows');

# memory as the rows have it
$node->stop('immediate');
$node->start;
is(query("SELECT string_agg(name, ' ' ORDER BY task) FROM fanout.tasks WHERE state = 'ready'"),
	'name args batch batch partition partition priority cost group key rank', 'a rebuild reads them');

# rows with all columns, as VACUUM FULL writes them
query('VACUUM FULL fanout.task_1');
like(stored(), qr/\A(?:\d+\|18\|32\n?){11}\z/, 'rows with all columns');
is(query("SELECT $columns FROM fanout.task ORDER BY id"), $rows, 'say the same');

# an operator's own columns
query("ALTER TABLE fanout.task ADD COLUMN note text DEFAULT 'none', ADD COLUMN other int");
query('CREATE INDEX note ON fanout.task_1 (note, other)');
query("SELECT fanout.enqueue('q', 'short'), fanout.enqueue('q', 'long', key => 'k2'), fanout.fan_out('q', 'more', $many)");
is(query('SELECT name, note, other, key FROM fanout.task WHERE id > (SELECT id FROM fanout.task WHERE name = \'rank\') ORDER BY id'),
	"short|none||\nlong|none||k2\nmore|none||\nmore|none||", 'columns that were added have what they were added with');
is(query("SET enable_seqscan = off; SELECT count(*) FROM fanout.task_1 WHERE note = 'none'"), 15, 'in an index, too');
is($node->psql('postgres', "SELECT bt_index_check('fanout.note', true)"), 0, 'PostgreSQL finds nothing amiss with that');
query('ALTER TABLE fanout.task DROP COLUMN note');
query("SELECT fanout.enqueue('q', 'last'), fanout.enqueue('q', 'latest', key => 'k3')");
is(query("SELECT count(*) FROM verify_heapam('fanout.task_1')"), 0, 'PostgreSQL finds nothing amiss with these');


# that must have a value: as long as there is one for the rows that do not have them
query("ALTER TABLE fanout.task ADD COLUMN kind int NOT NULL DEFAULT 7");
query("SELECT fanout.enqueue('q', 'kind')");
is(query("SELECT kind FROM fanout.task WHERE name = 'kind'"), 7, 'a column that is NOT NULL has what it was added with');
query('VACUUM FULL fanout.task_1');
my ($code, $out, $err) = $node->psql('postgres', "SELECT fanout.enqueue('q', 'without')");
like($err, qr/column "kind" of table "task_1" would have no value/, 'or no row is written');
query('ALTER TABLE fanout.task ALTER kind DROP NOT NULL');
query("SELECT fanout.enqueue('q', 'without')");
query('ALTER TABLE fanout.task_1 ADD COLUMN twice bigint GENERATED ALWAYS AS (2 * id) STORED');
($code, $out, $err) = $node->psql('postgres', "SELECT fanout.enqueue('q', 'generated')");
like($err, qr/column "twice" of table "task_1" would have no value/, 'nor with a column that is generated');
query('ALTER TABLE fanout.task_1 DROP COLUMN twice');

my $unfinished = query('SELECT string_agg(id::text, \' \' ORDER BY id) FROM fanout.task');
$node->restart;
is(query("SELECT string_agg(task::text, ' ' ORDER BY task) FROM (SELECT task FROM fanout.dequeue('q', 'w', 100) UNION ALL SELECT task FROM fanout.dequeue('aging', 'w', 100)) d"),
	$unfinished, 'all are delivered, once');
is(query('SELECT count(*) FROM fanout.leases l WHERE fanout.complete(l.lease)'), 19, 'and end');

done_testing();
