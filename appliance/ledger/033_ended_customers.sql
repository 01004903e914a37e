-- What the log has told of customers, whatever their rows say by now: by the last entry, and an erasure is for good.
CREATE INDEX audit_of_customers ON audit (subject)
    WHERE event IN ('customer.suspend', 'customer.resume', 'customer.erase');

CREATE INDEX audit_of_claims ON audit (subject) WHERE event = 'customer.claim';

-- Rows of before 021 did not say it, and are held to the log from now on.
UPDATE customers SET resumed_at =
    (SELECT time FROM audit WHERE event = 'customer.resume' AND subject = customers.id ORDER BY seq DESC LIMIT 1)
    WHERE resumed_at IS NULL;
