/* What the files of the double share; `context.c` says what it is. */
#include <stddef.h>
#include <stdint.h>

typedef int Result;
typedef unsigned long long Address; /* of memory on the GPU: no pointer, so that a host that follows it faults */

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, DEINITIALIZED = 4, INVALID_CONTEXT = 201, INVALID_HANDLE = 400,
       ILLEGAL_STATE = 401, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801,
       CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_IMPLICIT = 906, CAPTURED_EVENT = 907, WRONG_THREAD = 908 };
enum { GLOBAL = 0, THREAD_LOCAL = 1 }; /* modes of a capture */
enum { NON_BLOCKING = 1 };             /* flag of a stream */
enum { MAPPED = 2 };                   /* flag of pinned memory */

typedef enum { DEVICE, PINNED, STREAM, EVENT, GRAPH, EXECUTABLE, KINDS } Kind;

typedef struct Operation {
    struct Operation *next;
    enum { COPY, MEAN, RECORD } kind;
    Address from, to;        /* of a copy, one of them is a host's */
    int is_upload, is_bytes; /* copy; mean: the images are uint8 */
    size_t size, rows, out_size;
    float offset;
    struct Item *event;
} Operation;

typedef struct Item { /* whatever was taken and not given back */
    struct Item *next;
    Kind kind;
    size_t size;
    unsigned flags;
    Operation *first, *last; /* of a stream: not yet run; of a graph */
    struct Item *capture;    /* of a stream: the graph that it is captured to */
    int mode, is_invalid, is_captured, is_recorded;
    uintptr_t thread; /* that began the capture */
    double milliseconds;
    struct Item *stream; /* of an event */
} Item;

extern Item *items;

/* Every call begins with ENTER and ends with `return leave(…)`; in between it is the only one. */
enum { ANY = 0, CONTEXT = 1, UNSAFE = 3 }; /* needs a context; is not allowed during a capture either */
#define ENTER(needs) do { Result refused = enter(__func__, needs); if (refused) return leave(refused); } while (0)
Result enter(const char *name, int needs);
Result leave(Result result);

void fault(const char *text); /* notes what no program may do */
void lose(void);              /* makes the context fail every later call */
Result state(void);           /* of the context: success, or the error that it fails with */
Item *add(Kind kind, size_t size);
Item *find(Kind kind, const void *handle);
Result drop(Kind kind, void *handle);
void *on_gpu(Address address, size_t size);
int is_pinned(const void *host, size_t size);
uintptr_t this_thread(void);
int breaks_capture(void); /* of this thread, or of any in the global mode; the capture is then invalid */
void drain(Item *stream);
void drain_all(void);
void clear(Item *item);
