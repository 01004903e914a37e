-- Whose eyes a token is, where two people have to approve: the id of the token that its holder was first given,
-- 'founder' for who gives tokens to the customer's people, NULL where an operator issued what it comes of.
ALTER TABLE tokens ADD COLUMN holder TEXT;

-- How far the audit log went then; 0 for what was there before this was noted, so that older requests are to be
-- made anew.
ALTER TABLE tokens ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
ALTER TABLE grants ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;

-- The audit log knows which token issued and which rotated which; what one rotated of another's is left to nobody.
WITH RECURSIVE
    made (token, maker, rotated) AS MATERIALIZED (
        SELECT subject, actor_id, 0 FROM audit WHERE event = 'token.add' AND actor_kind = 'token'
        UNION ALL
        SELECT json_extract(details, '$.successor'), subject, 1 FROM audit
            WHERE event = 'token.rotate' AND (actor_kind <> 'token' OR actor_id = subject)
    ),
    held (token, holder) AS (
        SELECT id, 'founder' FROM tokens WHERE instr(scopes, 'admin') AND (recovery OR id =
            (SELECT id FROM tokens AS one WHERE one.customer = tokens.customer AND instr(scopes, 'admin')
                ORDER BY created_at, id LIMIT 1))
        UNION ALL
        SELECT made.token, iif(rotated OR holder <> 'founder', holder, made.token)
            FROM held JOIN made ON made.maker = held.token
    )
UPDATE tokens SET holder = held.holder FROM held WHERE held.token = tokens.id;
