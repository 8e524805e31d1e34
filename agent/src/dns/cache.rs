//! Owns answers of others for as long as they are good. Pure: told what time it is. Bounded in number and bytes; what came
//! first goes first.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{RData, RecordType},
};

use super::message::{Question, Reply, TCP_BYTES_MAX};

/// Answers kept.
const ENTRIES_MAX: usize = 4_096;
/// Bytes of them, as on the wire.
const BYTES_MAX: usize = 1 << 20;
/// A longer answer is not kept.
const ANSWER_BYTES_MAX: usize = 4_096;
/// Nothing is kept for longer, whatever it says: names move.
const TTL_S_MAX: u32 = 3_600;
/// That there is nothing, likewise (RFC 2308 has hours).
const NEGATIVE_TTL_S_MAX: u32 = 300;

/// What makes answers differ. Names are equal without regard to case.
type Key = (Query, bool, bool);

fn key(question: &Question) -> Key {
    (
        question.query.clone(),
        question.dnssec_ok(),
        question.checking_disabled(),
    )
}

#[derive(Debug)]
struct Entry {
    /// A message: records in memory take many times as much.
    bytes: Box<[u8]>,
    since: Instant,
    ttl: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: HashMap<Key, Entry>,
    order: VecDeque<Key>,
    bytes: usize,
}

impl Cache {
    /// With the time that is left of it.
    pub(super) fn get(&self, question: &Question, now: Instant) -> Option<Reply> {
        let entry = self.entries.get(&key(question))?;
        let age = now.saturating_duration_since(entry.since);
        if age >= entry.ttl {
            return None;
        }
        let mut reply = Reply::of(Message::from_vec(&entry.bytes).ok()?);
        let age_s = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        for record in reply.records() {
            record.decrement_ttl(age_s);
        }
        Some(reply)
    }

    /// Keeps it, if it may be kept.
    pub(super) fn put(&mut self, question: &Question, reply: &Reply, now: Instant) {
        let Some(ttl) = ttl(question, reply) else {
            return;
        };
        let bytes = reply.clone().encode(question, TCP_BYTES_MAX);
        if bytes.is_empty() || bytes.len() > ANSWER_BYTES_MAX {
            return;
        }
        self.bytes += bytes.len();
        let entry = Entry {
            bytes: bytes.into(),
            since: now,
            ttl,
        };
        let key = key(question);
        match self.entries.insert(key.clone(), entry) {
            Some(before) => self.bytes -= before.bytes.len(),
            None => self.order.push_back(key),
        }
        while self.entries.len() > ENTRIES_MAX || self.bytes > BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                return;
            };
            if let Some(entry) = self.entries.remove(&oldest) {
                self.bytes -= entry.bytes.len();
            }
        }
    }

    /// Others are asked from now on.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// How long it is good. None: it must not be kept.
fn ttl(question: &Question, reply: &Reply) -> Option<Duration> {
    let positive = reply.code == ResponseCode::NoError && answers(question, reply);
    let seconds = if positive {
        let all = reply.answers.iter().chain(&reply.authorities);
        all.map(|record| record.ttl).min()?.min(TTL_S_MAX)
    } else if matches!(reply.code, ResponseCode::NoError | ResponseCode::NXDomain) {
        let mut authorities = reply.authorities.iter();
        let soa = authorities.find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
            _ => None,
        });
        let answers = reply.answers.iter().map(|record| record.ttl);
        answers.chain([soa?]).min()?.min(NEGATIVE_TTL_S_MAX)
    } else {
        return None;
    };
    (seconds > 0).then(|| Duration::from_secs(seconds.into()))
}

/// Not just an alias of something that does not exist.
fn answers(question: &Question, reply: &Reply) -> bool {
    let wanted = |kind| kind == question.kind() || question.kind() == RecordType::ANY;
    reply.answers.iter().any(|record| wanted(record.record_type()))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::{
        op::{MessageType, OpCode},
        rr::{Name, Record, rdata::SOA},
    };

    use super::{super::message::Received, *};

    fn question(name: &str, kind: RecordType) -> Question {
        let mut message = Message::new(1, MessageType::Query, OpCode::Query);
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        match Question::read(&message.to_vec().unwrap()) {
            Received::Question(question) => *question,
            other => panic!("{other:?}"),
        }
    }

    fn record(name: &str, ttl: u32, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, data)
    }

    fn address(ttl: u32) -> Record {
        record("a.example.", ttl, RData::from(Ipv4Addr::LOCALHOST))
    }

    fn soa(ttl: u32, minimum: u32) -> Record {
        let name = Name::from_ascii("example.").unwrap();
        let soa = SOA::new(name.clone(), name, 1, 1, 1, 1, minimum);
        record("example.", ttl, RData::SOA(soa))
    }

    fn reply(code: ResponseCode, answers: Vec<Record>, authorities: Vec<Record>) -> Reply {
        Reply {
            code,
            answers,
            authorities,
            ..Reply::default()
        }
    }

    #[test]
    fn an_answer_is_kept_for_its_shortest_time_and_says_what_is_left_of_it() {
        let asked = question("A.example.", RecordType::A);
        let (mut cache, now) = (Cache::default(), Instant::now());
        let answer = reply(ResponseCode::NoError, vec![address(30), address(90)], vec![]);
        cache.put(&asked, &answer, now);
        let same = question("a.EXAMPLE.", RecordType::A);
        let later = cache.get(&same, now + Duration::from_secs(20)).unwrap();
        let ttls: Vec<u32> = later.answers.iter().map(|record| record.ttl).collect();
        assert_eq!(ttls, [10, 70]);
        assert!(cache.get(&same, now + Duration::from_secs(30)).is_none());
        assert!(
            cache
                .get(&question("a.example.", RecordType::AAAA), now)
                .is_none()
        );
    }

    #[test]
    fn that_there_is_nothing_is_kept_as_long_as_its_domain_says_and_failures_are_not() {
        use ResponseCode as Code;
        let asked = question("a.example.", RecordType::A);
        let alias = || {
            let data = RData::CNAME(hickory_proto::rr::rdata::CNAME(
                Name::from_ascii("b.example.").unwrap(),
            ));
            record("a.example.", 7, data)
        };
        for (code, answers, authorities, expected) in [
            (Code::NXDomain, vec![], vec![soa(60, 20)], Some(20)),
            (Code::NXDomain, vec![], vec![soa(10, 20)], Some(10)),
            (Code::NoError, vec![], vec![soa(86_400, 86_400)], Some(300)),
            (Code::NoError, vec![alias()], vec![soa(60, 60)], Some(7)),
            (Code::NoError, vec![alias()], vec![], None),
            (Code::NXDomain, vec![], vec![], None),
            (Code::ServFail, vec![], vec![soa(60, 60)], None),
            (Code::NoError, vec![address(0)], vec![], None),
            (Code::NoError, vec![address(86_400)], vec![], Some(3_600)),
        ] {
            let kept = ttl(&asked, &reply(code, answers, authorities)).map(|ttl| ttl.as_secs());
            assert_eq!(kept, expected, "{code}");
        }
    }

    #[test]
    fn it_grows_neither_in_number_nor_in_bytes() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..ENTRIES_MAX + 100 {
            let asked = question(&format!("n{n}.example."), RecordType::A);
            let answer = reply(ResponseCode::NoError, vec![address(60)], vec![]);
            cache.put(&asked, &answer, now);
            cache.put(&asked, &answer, now);
        }
        assert_eq!(
            (cache.entries.len(), cache.order.len()),
            (ENTRIES_MAX, ENTRIES_MAX)
        );
        assert!(cache.get(&question("n0.example.", RecordType::A), now).is_none());
        for n in 0..2_000 {
            let asked = question(&format!("n{n}.example."), RecordType::A);
            let answer = reply(ResponseCode::NoError, vec![address(60); 100], vec![]);
            cache.put(&asked, &answer, now);
        }
        let held: usize = cache.entries.values().map(|entry| entry.bytes.len()).sum();
        assert!(held == cache.bytes && held <= BYTES_MAX, "{held} {}", cache.bytes);
        let long = question("long.example.", RecordType::A);
        let answer = reply(ResponseCode::NoError, vec![address(60); 400], vec![]);
        cache.put(&long, &answer, now);
        assert!(cache.get(&long, now).is_none());
    }
}
