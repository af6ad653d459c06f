-- What every script begins with. KEYS[1] is the key of a group, with which the keys of its chord
-- begin: j (parts), t (members added), s (size), d (parts seen) and c (claim, or "done") are
-- Celery's own, and keep the meaning that they have in Celery 5.7; the record is the ledger's.
-- Scripts that are about many chords are given what the keys of all groups begin with. KEYS[2] is
-- the index of what is due. Clients would take longer to send each key than for all the rest.
local group, due = KEYS[1], KEYS[2]
local j, t, s, d, c = group .. '.j', group .. '.t', group .. '.s', group .. '.d', group .. '.c'
local record = group .. '.chordguard'

local INDEX_SECONDS = 60 * 86400

-- Have the watchdog look at a chord at `when`.
local function be_due(group_id, when)
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

