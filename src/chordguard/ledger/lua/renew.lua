-- Keep a claim for so many seconds more; for none it is given back, or has ended at ARGV[5].
local token, now, claim_seconds = ARGV[2], ARGV[3], tonumber(ARGV[4])

if redis.call('GET', c) ~= token then
    return 0
end
local claimed_until = ARGV[5] or '0'
if claim_seconds > 0 then
    redis.call('EXPIRE', c, claim_seconds)
    claimed_until = string.format('%.3f', tonumber(now) + claim_seconds)
else
    redis.call('DEL', c)
end
if redis.call('EXISTS', record) == 1 then
    redis.call('HSET', record, 'claimed_until', claimed_until)
    be_due(tonumber(now) + claim_seconds)
end
return 1
