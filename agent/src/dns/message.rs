//! Owns the form of questions and answers: RFC 1035, with EDNS (RFC 6891). Pure. Never knows an answer.

use hickory_proto::{
    op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, Record, RecordType},
};

/// Of a message, before its sections.
const HEADER_BYTES: usize = 12;
/// What every client takes over UDP.
const UDP_BYTES_MIN: u16 = 512;
/// What passes every link in one piece (DNS flag day 2020).
pub(super) const UDP_BYTES_MAX: u16 = 1232;
/// What the length before a message says at most.
pub(super) const TCP_BYTES_MAX: usize = 65_535;

/// What came.
#[derive(Debug)]
pub(super) enum Received {
    Question(Box<Question>),
    /// No question that can be answered; what to say to that.
    Malformed(Vec<u8>),
    /// An answer, or nothing at all: an answer to that could go on for ever.
    Noise,
}

/// One question.
#[derive(Clone, Debug)]
pub(super) struct Question {
    metadata: Metadata,
    pub(super) query: Query,
    edns: Option<Edns>,
}

impl Question {
    /// Of what a client, or anybody, sent.
    pub(super) fn read(bytes: &[u8]) -> Received {
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
            return Received::Noise;
        };
        let id = u16::from_be_bytes([header[0], header[1]]);
        if header[2] & 0x80 != 0 {
            return Received::Noise;
        }
        let refuse = |code| {
            let message = Message::error_msg(id, OpCode::Query, code);
            message.to_vec().map_or(Received::Noise, Received::Malformed)
        };
        let Ok(mut message) = Message::from_vec(bytes) else {
            return refuse(ResponseCode::FormErr);
        };
        if message.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
            return refuse(ResponseCode::FormErr);
        };
        Received::Question(Box::new(Self {
            metadata: message.metadata,
            query,
            edns: message.edns,
        }))
    }

    pub(super) fn name(&self) -> &Name {
        self.query.name()
    }

    pub(super) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    /// The client wants signatures, too.
    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok)
    }

    /// The client checks them itself.
    pub(super) fn checking_disabled(&self) -> bool {
        self.metadata.checking_disabled
    }

    /// Why it is not even looked for.
    pub(super) fn refusal(&self) -> Option<ResponseCode> {
        if self.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return Some(ResponseCode::BADVERS);
        }
        let transfer = matches!(self.kind(), RecordType::AXFR | RecordType::IXFR);
        (transfer || self.query.query_class() != DNSClass::IN).then_some(ResponseCode::Refused)
    }

    /// What the client takes over UDP, bytes.
    pub(super) fn udp_bytes_max(&self) -> usize {
        let asked = self.edns.as_ref().map_or(UDP_BYTES_MIN, Edns::max_payload);
        asked.clamp(UDP_BYTES_MIN, UDP_BYTES_MAX).into()
    }

    /// The same, as it is asked of another: nothing of the client's but the question and its flags.
    pub(super) fn to_server(&self, id: u16, edns: bool) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.authentic_data = self.metadata.authentic_data;
        message.add_query(self.query.clone());
        if edns {
            let mut own = Edns::new();
            own.set_max_payload(UDP_BYTES_MAX).set_dnssec_ok(self.dnssec_ok());
            message.set_edns(own);
        }
        message
    }

    /// Whether a message answers what [`to_server`](Self::to_server) asked.
    pub(super) fn is_answered_by(&self, id: u16, message: &Message) -> bool {
        let metadata = &message.metadata;
        metadata.id == id
            && metadata.message_type == MessageType::Response
            && metadata.op_code == OpCode::Query
            && message.queries.len() == 1
            && message.queries[0] == self.query
    }
}

/// What a question is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: ResponseCode,
    /// It is our own word.
    pub(super) authoritative: bool,
    /// Who said it has checked its signatures.
    pub(super) authentic: bool,
    pub(super) answers: Vec<Record>,
    pub(super) authorities: Vec<Record>,
    pub(super) additionals: Vec<Record>,
}

impl Reply {
    pub(super) fn failure(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }

    /// Of another's answer.
    pub(super) fn of(message: Message) -> Self {
        Self {
            code: message.metadata.response_code,
            authoritative: false,
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        }
    }

    pub(super) fn records(&mut self) -> impl Iterator<Item = &mut Record> {
        self.answers
            .iter_mut()
            .chain(&mut self.authorities)
            .chain(&mut self.additionals)
    }

    /// As bytes, at most so many: else only that there is more, and the client asks over TCP. Empty where it cannot be said.
    pub(super) fn encode(self, question: &Question, bytes_max: usize) -> Vec<u8> {
        let mut metadata = Metadata::response_from_request(&question.metadata);
        metadata.recursion_available = true;
        metadata.response_code = self.code;
        metadata.authoritative = self.authoritative;
        metadata.authentic_data = self.authentic;
        let mut message = Message::new(metadata.id, MessageType::Response, OpCode::Query);
        message.metadata = metadata;
        message.add_query(question.query.clone());
        message.answers = self.answers;
        message.authorities = self.authorities;
        message.additionals = self.additionals;
        if let Some(asked) = &question.edns {
            let mut own = Edns::new();
            own.set_max_payload(UDP_BYTES_MAX)
                .set_dnssec_ok(asked.flags().dnssec_ok);
            message.edns = Some(own);
        }
        match message.to_vec() {
            Ok(bytes) if bytes.len() <= bytes_max => bytes,
            _ => message.truncate().to_vec().unwrap_or_default(),
        }
    }
}
