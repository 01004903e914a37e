-- Until when (unix milliseconds) nothing is deleted because its time is over: the clock leapt ahead before.
ALTER TABLE latest_time ADD COLUMN doubted_until INTEGER NOT NULL DEFAULT 0;
