-- What every script begins with. KEYS[1] is what the keys of all groups begin with, KEYS[2] the
-- index of what is due, and ARGV[1] the id of a chord, empty where a script is about many. With the
-- key of its group the keys of a chord begin: j (parts), t (members added), s (size), d (parts
-- seen) and c (claim, or "done") are Celery's own, and keep the meaning that they have in Celery
-- 5.7. The record is the ledger's, and so is what is kept of a chord that has ended, as a JSON
-- array. A key that begins with the id of the result that a body gives points to its chord. Clients
-- would take longer to send each key than for all the rest.
local group_id, due = ARGV[1], KEYS[2]
local group = KEYS[1] .. group_id
local j, t, s, d, c = group .. '.j', group .. '.t', group .. '.s', group .. '.d', group .. '.c'
local record, kept = group .. '.chordguard', group .. '.chordguard-end'
local POINTER = '.chordguard-of'

local INDEX_SECONDS = 60 * 86400

-- For how long the keys of a chord live whose record does not tell.
local LONGEST_SECONDS = 30 * 86400

-- Return the number that a value is, nil for what is none: a store may hold anything.
local function number(value)
    local found = tonumber(value)
    return found and found >= 0 and found < 2 ^ 53 and found or nil
end

-- Have the watchdog look at the chord at `when`.
local function be_due(when)
    redis.call('ZADD', due, when, group_id)
    redis.call('EXPIRE', due, INDEX_SECONDS)
end

-- Of a part the first so many characters name its task and the state that it ended in.
local BEGINNING = 256

-- Tell whether one of the parts is that of a task.
local function is_among(parts, task_id)
    for _, part in ipairs(parts) do
        if string.find(string.sub(part, 1, BEGINNING), task_id, 1, true) then
            return true
        end
    end
    return false
end

