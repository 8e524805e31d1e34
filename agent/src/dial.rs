//! Owns how a connection to the control plane is opened: directly, or through the proxy that the environment names.
//! Never speaks TLS: the tunnel carries it unread.
//!
//! `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` (or in lower case) mean what they mean to curl; loopback is never
//! reached through a proxy.

use std::{
    fmt, io,
    net::{IpAddr, ToSocketAddrs},
    sync::{Arc, Mutex, PoisonError},
};

use http::Uri;
use hyper_util::{
    client::{
        legacy::connect::{HttpConnector, proxy::Tunnel},
        proxy::matcher::{Intercept, Matcher},
    },
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tower::Service;

const DEFAULT_TLS_PORT: u16 = 443;
const DEFAULT_PROXY_PORT: u16 = 80;
/// Addresses of one name that are looked at.
const RESOLVED_MAX: usize = 16;
/// Where the proxy for TLS is named, in the order in which they are looked at.
const PROXY_VARIABLES: [&str; 4] = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Without the value: it may hold a password.
    #[error(
        "environment variable {variable} is not the address of an HTTP proxy: it should look like http://proxy.example:3128"
    )]
    Variable { variable: &'static str },
    #[error("proxy {proxy} is not an http:// one: TLS to the proxy itself and SOCKS are not supported")]
    Scheme { proxy: String },
    #[error("{address:?} names no host")]
    NoHost { address: String },
    #[error("connect to {to}")]
    Direct { to: String, source: BoxError },
    #[error("reach {to} through proxy {proxy}")]
    Tunnel {
        to: String,
        proxy: String,
        source: BoxError,
    },
}

/// How the control plane is reached.
#[derive(Clone, Debug)]
pub enum Route {
    Direct,
    Proxy(Intercept),
}

/// Opens connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Dialer {
    matcher: Arc<Matcher>,
    /// By the latest connection.
    reached: Arc<Mutex<Option<IpAddr>>>,
}

/// Whom this host talks to in order to reach the control plane: itself, or the proxy before it. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FirstHop {
    /// Host and port. None: not known.
    named: Option<(String, u16)>,
    reached: Arc<Mutex<Option<IpAddr>>>,
}

/// Its name means nothing here, now.
#[derive(Debug, thiserror::Error)]
#[error("resolve {host}")]
pub struct Unresolved {
    host: String,
    source: io::Error,
}

impl FirstHop {
    /// One that is not connected to.
    pub fn named(host: &str, port: u16) -> Self {
        Self {
            named: Some((host.to_owned(), port)),
            ..Self::default()
        }
    }

    /// Where it was, when it was last reached. None: not yet.
    pub fn reached(&self) -> Option<IpAddr> {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Likewise; before it was reached all that its name means here: nothing where there is no name. Blocks as long as the host's
    /// resolver does.
    ///
    /// # Errors
    /// When the name means nothing, or the resolver does not answer.
    pub fn resolve(&self) -> Result<Vec<IpAddr>, Unresolved> {
        if let Some(reached) = self.reached() {
            return Ok(vec![reached]);
        }
        let Some((host, port)) = &self.named else {
            return Ok(Vec::new());
        };
        let failed = |source| Unresolved {
            host: host.clone(),
            source,
        };
        let resolved = (host.as_str(), *port).to_socket_addrs().map_err(failed)?;
        let addresses = resolved.map(|address| address.ip()).take(RESOLVED_MAX);
        let addresses: Vec<IpAddr> = addresses.collect();
        match addresses.is_empty() {
            true => Err(failed(io::ErrorKind::NotFound.into())),
            false => Ok(addresses),
        }
    }
}

impl Dialer {
    /// As this process's environment says.
    ///
    /// # Errors
    /// A proxy that cannot be used: going around it would be no better than failing, and less clear.
    pub fn from_env() -> Result<Self, DialError> {
        let named = PROXY_VARIABLES.into_iter().find_map(|name| {
            let value = std::env::var(name).ok()?;
            Some((name, value))
        });
        if let Some((variable, value)) = named.filter(|(_, value)| !value.is_empty()) {
            let probe = Matcher::builder().https(value).build();
            if probe
                .intercept(&Uri::from_static("https://berth.invalid"))
                .is_none()
            {
                return Err(DialError::Variable { variable });
            }
        }
        Ok(Self::new(Matcher::from_env()))
    }

    pub fn new(matcher: Matcher) -> Self {
        Self {
            matcher: Arc::new(matcher),
            reached: Arc::default(),
        }
    }

    /// Of the way to `to`, as this opens connections.
    pub fn way_to(&self, to: &Uri) -> FirstHop {
        FirstHop {
            named: self.first_hop(to).ok(),
            reached: Arc::clone(&self.reached),
        }
    }

    /// Which way to `to`.
    pub fn route(&self, to: &Uri) -> Result<Route, DialError> {
        let host = to.host().ok_or_else(|| DialError::NoHost {
            address: to.to_string(),
        })?;
        if is_loopback(host) {
            return Ok(Route::Direct);
        }
        let Some(proxy) = self.matcher.intercept(to) else {
            return Ok(Route::Direct);
        };
        if proxy.uri().scheme_str() != Some("http") {
            let proxy = proxy_name(&proxy);
            return Err(DialError::Scheme { proxy });
        }
        Ok(Route::Proxy(proxy))
    }

    /// Host and port of the first hop to `to`: what has to be resolved and reached from here.
    pub fn first_hop(&self, to: &Uri) -> Result<(String, u16), DialError> {
        let (hop, default) = match self.route(to)? {
            Route::Direct => (to.clone(), DEFAULT_TLS_PORT),
            Route::Proxy(proxy) => (proxy.uri().clone(), DEFAULT_PROXY_PORT),
        };
        let host = hop.host().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        Ok((bare.to_owned(), hop.port_u16().unwrap_or(default)))
    }

    /// What tonic opens its connections with.
    pub(crate) fn connector(
        &self,
    ) -> impl Service<Uri, Response = TokioIo<TcpStream>, Error = DialError, Future: Send> + Clone + Send + use<>
    {
        let dialer = self.clone();
        tower::service_fn(move |to: Uri| {
            let dialer = dialer.clone();
            async move {
                let connected = dialer.connect(to).await?;
                if let Ok(peer) = connected.inner().peer_addr() {
                    *dialer.reached.lock().unwrap_or_else(PoisonError::into_inner) = Some(peer.ip());
                }
                Ok(connected)
            }
        })
    }

    async fn connect(&self, to: Uri) -> Result<TokioIo<TcpStream>, DialError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let name = to.authority().map(ToString::to_string).unwrap_or_default();
        match self.route(&to)? {
            Route::Direct => tcp.call(to).await.map_err(|source| DialError::Direct {
                to: name,
                source: source.into(),
            }),
            Route::Proxy(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                tunnel.call(to).await.map_err(|source| DialError::Tunnel {
                    to: name,
                    proxy: proxy_name(&proxy),
                    source: source.into(),
                })
            }
        }
    }
}

impl fmt::Display for Route {
    /// Without what the proxy is told of who asks.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("directly"),
            Self::Proxy(proxy) => write!(f, "through proxy {}", proxy_name(proxy)),
        }
    }
}

/// The matcher has taken user and password out of the address.
fn proxy_name(proxy: &Intercept) -> String {
    proxy
        .uri()
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default()
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    fn through(proxy: &str, no: &str) -> Dialer {
        Dialer::new(Matcher::builder().https(proxy).no(no).build())
    }

    fn uri(text: &'static str) -> Uri {
        Uri::from_static(text)
    }

    #[test]
    fn a_proxy_is_used_but_for_loopback_and_what_no_proxy_names() {
        let dialer = through(
            "http://user:secret@proxy.example:3128",
            "inside.example,10.0.0.0/8",
        );
        let hop = |to| dialer.first_hop(&uri(to)).unwrap();
        assert_eq!(hop("https://cp.example:8781"), ("proxy.example".into(), 3128));
        assert_eq!(
            hop("https://cp.inside.example:8781"),
            ("cp.inside.example".into(), 8781)
        );
        assert_eq!(hop("https://10.1.2.3:8781"), ("10.1.2.3".into(), 8781));
        assert_eq!(hop("https://[::1]:8781"), ("::1".into(), 8781));
        assert_eq!(hop("https://localhost"), ("localhost".into(), 443));
        let said = format!(
            "{:?} {}",
            dialer,
            dialer.route(&uri("https://cp.example")).unwrap()
        );
        assert!(
            said.contains("proxy.example:3128") && !said.contains("secret"),
            "{said}"
        );
    }

    #[tokio::test]
    async fn whom_it_reached_is_known_and_before_that_what_the_name_means() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let to: Uri = format!("https://127.0.0.1:{port}").parse().unwrap();
        let dialer = Dialer::new(Matcher::builder().build());
        let way = dialer.way_to(&to);
        let here: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!((way.reached(), way.resolve().unwrap()), (None, vec![here]));
        dialer.connector().call(to).await.unwrap();
        assert_eq!(way.reached(), Some(here));
        let proxied = through("http://192.0.2.9:3128", "");
        let way = proxied.way_to(&uri("https://cp.example:8781"));
        assert_eq!(way.resolve().unwrap(), ["192.0.2.9".parse::<IpAddr>().unwrap()]);
        assert!(FirstHop::default().resolve().unwrap().is_empty());
        // No resolver is asked for such a name.
        let unknown = FirstHop::named("cp..example", 8781).resolve().unwrap_err();
        assert!(unknown.to_string().contains("cp..example"), "{unknown}");
    }

    #[test]
    fn a_proxy_that_cannot_be_used_is_refused() {
        for proxy in ["https://proxy.example", "socks5://proxy.example"] {
            let refused = through(proxy, "").route(&uri("https://cp.example")).unwrap_err();
            assert!(refused.to_string().contains("proxy.example"), "{refused}");
        }
    }

    /// Takes one CONNECT, answers it, and echoes what comes then.
    async fn proxy(answer: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut from, mut to) = stream.split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
            String::from_utf8(head).unwrap()
        });
        (address, served)
    }

    #[tokio::test]
    async fn the_tunnel_is_asked_for_with_the_password_of_the_address() {
        let (address, served) = proxy("HTTP/1.1 200 OK\r\n\r\n").await;
        let dialer = through(&format!("http://user:secret@{address}"), "");
        let mut stream = dialer
            .connect(uri("https://cp.example:8781"))
            .await
            .unwrap()
            .into_inner();
        stream.write_all(b"hello").await.unwrap();
        let mut echo = [0; 5];
        stream.read_exact(&mut echo).await.unwrap();
        assert_eq!(&echo, b"hello");
        drop(stream);
        let asked = served.await.unwrap();
        assert!(
            asked.starts_with("CONNECT cp.example:8781 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.contains("Proxy-Authorization: Basic dXNlcjpzZWNyZXQ="),
            "{asked}"
        );
    }

    #[tokio::test]
    async fn a_proxy_that_says_no_is_named_without_its_password() {
        let (address, _served) = proxy("HTTP/1.1 407 Proxy Authentication Required\r\n\r\n").await;
        let dialer = through(&format!("http://user:secret@{address}"), "");
        let refused = dialer.connect(uri("https://cp.example")).await.unwrap_err();
        let said = crate::sys::Chain(&refused).to_string();
        assert!(
            said.contains(&address) && said.contains("authorization required"),
            "{said}"
        );
        assert!(!said.contains("secret") && !said.contains("dXNlcjpz"), "{said}");
    }
}
