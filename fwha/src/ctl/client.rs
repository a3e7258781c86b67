//! HTTP/1.1 on the control socket.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Once,
    time::Duration,
};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};

use super::term;
use crate::api::{ApiError, WARNING_HEADER, path};

/// A daemon that has not begun to answer after this hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The same if it has much to do first: to walk a table of millions of flows, or to load programs, where the verifier takes a
/// second or two, and many times as long if others want the processors.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer that is one object, and the longest line of one that is many.
const ANSWER_LEN_MAX: usize = 16 << 20;

/// Why there is nobody to talk to.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    /// No socket, or one that nobody listens on: a daemon that was killed left it.
    #[error("no fwha daemon at {}: {why} (is \"fwha run\" up?)", .socket.display())]
    NoDaemon { socket: PathBuf, why: &'static str },
    /// Only root may.
    #[error("cannot connect to {}: permission denied (fwhactl needs root)", .0.display())]
    Denied(PathBuf),
    /// Anything else.
    #[error("cannot connect to {}: {error}", .socket.display())]
    Other { socket: PathBuf, error: io::Error },
}

impl ConnectError {
    fn new(socket: &Path, error: io::Error) -> Self {
        let socket = socket.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::NoDaemon { socket, why: "no such socket" },
            io::ErrorKind::ConnectionRefused => Self::NoDaemon { socket, why: "connection refused" },
            io::ErrorKind::PermissionDenied => Self::Denied(socket),
            _ => Self::Other { socket, error },
        }
    }
}

/// A daemon that is there and says nothing.
#[derive(Debug, thiserror::Error)]
#[error("the fwha daemon at {} does not answer: it is starting, or hangs", .0.display())]
pub(super) struct Silent(PathBuf);

/// A client of one daemon. Each request has a connection of its own.
pub(super) struct Client {
    socket: PathBuf,
    warned: Once,
}

impl Client {
    pub(super) const fn new(socket: PathBuf) -> Self {
        Self { socket, warned: Once::new() }
    }

    /// Asks for one object.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.object(path, response).await
    }

    /// Asks for a text.
    pub(super) async fn text(&self, path: &str) -> anyhow::Result<Bytes> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        self.body(response).await
    }

    /// Sends one object and gets one.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<T> {
        let response = self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await?;
        self.object(path, response).await
    }

    /// Asks for many objects, one a line. Those that match may be far apart in a large table, so while none comes the daemon
    /// is asked whether it is there.
    pub(super) async fn lines(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Lines> {
        Ok(Lines { patience: ANSWER_TIMEOUT, ..self.follow(path, query).await? })
    }

    /// As [`Self::lines`], of what happens: the next line may take its time.
    pub(super) async fn follow(&self, path: &str, query: &impl Serialize) -> anyhow::Result<Lines> {
        let query = serde_urlencoded::to_string(query)?;
        let target = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
        let response = self.send(Method::GET, &target, Bytes::new()).await?;
        Ok(Lines::of(response, &self.socket))
    }

    /// Sends one object and gets many, one a line.
    pub(super) async fn post_lines(&self, path: &str, body: &impl Serialize) -> anyhow::Result<Lines> {
        let response = self.send(Method::POST, path, serde_json::to_vec(body)?.into()).await?;
        Ok(Lines { patience: ANSWER_TIMEOUT, ..Lines::of(response, &self.socket) })
    }

    /// Sends a request; gives the answer if its status says success.
    async fn send(&self, method: Method, target: &str, body: Bytes) -> anyhow::Result<Response<Incoming>> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| ConnectError::new(&self.socket, error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer, or when the runtime does.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(target).header("host", "fwha");
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let works = [path::EXPLAIN_PACKET, path::RELOAD, path::FLOWS_DELETE];
        let works = works.iter().any(|path| target.starts_with(path));
        let patience = if works { WORK_TIMEOUT } else { ANSWER_TIMEOUT };
        let response = timeout(patience, sender.send_request(request.body(Full::new(body))?)).await;
        let response = match response.with_context(|| self.silent())? {
            Ok(response) => response,
            Err(error) => return Err(anyhow::Error::from(error).context(broken(&self.socket).await)),
        };
        if let Some(warning) = response.headers().get(WARNING_HEADER).and_then(|w| w.to_str().ok()) {
            self.warned.call_once(|| {
                // Nobody reads it, then.
                let _ = writeln!(io::stderr(), "fwhactl: warning: {}", term::plain(warning));
            });
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.body(response).await.unwrap_or_default();
        match serde_json::from_slice::<ApiError>(&body) {
            Ok(error) => Err(error.into()),
            Err(_) => bail!("the daemon answered {status} to {target}: its version may be another"),
        }
    }

    async fn object<T: DeserializeOwned>(
        &self,
        path: &str,
        response: Response<Incoming>,
    ) -> anyhow::Result<T> {
        let body = self.body(response).await?;
        serde_json::from_slice(&body).with_context(|| {
            format!("the daemon's answer to {path} is not understood: its version may be another")
        })
    }

    async fn body(&self, response: Response<Incoming>) -> anyhow::Result<Bytes> {
        let body = http_body_util::Limited::new(response.into_body(), ANSWER_LEN_MAX);
        match timeout(ANSWER_TIMEOUT, body.collect()).await.with_context(|| self.silent())? {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) => Err(anyhow::anyhow!("{error}").context(broken(&self.socket).await)),
        }
    }

    fn silent(&self) -> Silent {
        Silent(self.socket.clone())
    }
}

/// Why there is no answer, or no more of it, though there should be: the daemon is gone, or gave this one up.
async fn broken(socket: &Path) -> String {
    let what = if UnixStream::connect(socket).await.is_ok() { "broke off" } else { "has gone" };
    format!("the fwha daemon at {} {what}", socket.display())
}

/// Lines of an answer as they come.
pub(super) struct Lines {
    socket: PathBuf,
    /// After so long without anything the daemon is asked whether it is there.
    patience: Duration,
    body: Incoming,
    buffer: Vec<u8>,
    /// Where in `buffer` the next line begins.
    start: usize,
    ended: bool,
}

impl Lines {
    fn of(response: Response<Incoming>, socket: &Path) -> Self {
        let socket = socket.to_owned();
        let (body, patience) = (response.into_body(), Duration::MAX);
        Self { socket, patience, body, buffer: Vec::new(), start: 0, ended: false }
    }

    /// Why there are no more lines, though there should be.
    pub(super) async fn broken(&self) -> anyhow::Error {
        anyhow::anyhow!(broken(&self.socket).await)
    }

    /// The next line that is not empty; `None` after the last.
    pub(super) async fn next(&mut self) -> anyhow::Result<Option<&[u8]>> {
        let mut searched = self.start;
        loop {
            if let Some(length) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let line = self.start..searched + length;
                self.start = line.end + 1;
                searched = self.start;
                if line.is_empty() {
                    continue;
                }
                return Ok(Some(&self.buffer[line]));
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            searched = self.buffer.len();
            if self.ended {
                // A last line without its end was cut off.
                return if self.buffer.is_empty() { Ok(None) } else { Err(self.broken().await) };
            }
            if self.buffer.len() > ANSWER_LEN_MAX {
                bail!("the daemon sends a line that does not end");
            }
            let Ok(frame) = timeout(self.patience, self.body.frame()).await else {
                let aside = Client::new(self.socket.clone());
                // It has warned once.
                aside.warned.call_once(|| {});
                aside.get::<serde::de::IgnoredAny>(path::STATUS).await?;
                continue;
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(_)) => return Err(self.broken().await),
                None => self.ended = true,
            }
        }
    }

    /// Whether the next line is here already; if not, now is the time to flush.
    pub(super) fn more_is_here(&self) -> bool {
        self.buffer[self.start..].contains(&b'\n')
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;

    /// Takes a connection and reads what is asked there.
    async fn asked(listener: &UnixListener) -> (UnixStream, String) {
        let mut stream = listener.accept().await.unwrap().0;
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(request).unwrap())
    }

    #[tokio::test]
    async fn a_daemon_that_says_nothing_for_long_is_asked_whether_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fwha.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let daemon = tokio::spawn(async move {
            let (mut flows, _) = asked(&listener).await;
            flows.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            for _ in 0..3 {
                let (mut aside, request) = asked(&listener).await;
                assert!(request.starts_with("GET /v1/status "), "{request}");
                aside.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
            }
            flows.write_all(b"7\r\n{\"n\":1}\r\n1\r\n\n\r\n0\r\n\r\n").await.unwrap();
            // Whoever asks once more finds nobody.
            drop(listener);
            flows
        });
        let followed = Client::new(socket).follow("/v1/flows", &()).await.unwrap();
        let mut lines = Lines { patience: Duration::from_millis(20), ..followed };
        assert_eq!(lines.next().await.unwrap().unwrap(), br#"{"n":1}"#);
        assert_eq!(lines.next().await.unwrap(), None);
        daemon.await.unwrap();
    }
}
