-- The five best documents for a query, with the words around what was found. Expects the variable query.
\set ON_ERROR_STOP 1
SELECT path, regexp_replace(ts_headline('english', left(content, 20000), q,
                                        'MaxFragments=1, MaxWords=15, MinWords=8, StartSel="[", StopSel="]"'),
                            '\s+', ' ', 'g') AS excerpt
  FROM (SELECT path, task, q, ts_rank(words, q, 1) AS rank
          FROM documents, websearch_to_tsquery('english', :'query') q
         WHERE words @@ q ORDER BY rank DESC, path LIMIT 5) best
  JOIN document_text USING (task)
 ORDER BY rank DESC, path;
