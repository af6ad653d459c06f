-- Claim a live chord; return its header.
local token, now, claim_seconds = ARGV[2], ARGV[3], tonumber(ARGV[4])

local is_recorded = redis.call('EXISTS', record) == 1
if not is_recorded and redis.call('EXISTS', j, s) == 0 then
    return false
end
if not redis.call('SET', c, token, 'NX', 'EX', claim_seconds) and redis.call('GET', c) ~= token then
    return false
end
if not is_recorded then
    return {}
end
local claimed_until = string.format('%.3f', tonumber(now) + claim_seconds)
redis.call('HSET', record, 'claimed_until', claimed_until)
be_due(claimed_until)
return {redis.call('HGET', record, 'header')}
