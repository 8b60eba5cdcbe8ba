# The two routines of machine_code.py, for Linux on x86-64, as position-independent code in the System V calling convention.
#
#     as --64 -o code.o machine_code_x86_64.s && objcopy -O binary -j .text code.o code.bin
#
# gives the bytes that machine_code.py holds; tests/sandbox/test_machine_code.py does that and compares. They touch no memory
# but what they are given and 72 bytes of the stack, and call nothing but the kernel: no Python object changes meanwhile.

        .intel_syntax noprefix
        .text

        .set    MADVISE, 28
        .set    MADV_DONTNEED, 4
        .set    MADV_POPULATE_READ, 22
        .set    PAGE, 4096

# long make_calls(const long (*calls)[8], long count)
#
# Makes system calls one after the other: number, six arguments, the result that it must have. Stops at the first that has
# another. Returns how many were not made, or had another result.

make_calls:
        push    rbx
        push    r12
        mov     rbx, rdi
        mov     r12, rsi
.Lcall:
        test    r12, r12
        jz      .Lcalled
        mov     rax, [rbx]
        mov     rdi, [rbx + 8]
        mov     rsi, [rbx + 16]
        mov     rdx, [rbx + 24]
        mov     r10, [rbx + 32]
        mov     r8, [rbx + 40]
        mov     r9, [rbx + 48]
        syscall
        cmp     rax, [rbx + 56]
        jne     .Lcalled
        add     rbx, 64
        dec     r12
        jmp     .Lcall
.Lcalled:
        mov     rax, r12
        pop     r12
        pop     rbx
        ret

# long drop_equal(const struct { char *pages; const char *originals; char *marks; long bytes; } *runs, long count)
#
# Drops every page whose content is that of its original. A run that cannot be read is left alone. What is not the same after it
# was dropped, because something else than the originals' file is mapped there, gets the content that it had. Returns the bytes
# that were equal. There is a mark for each page, a byte that is 0 before and after.

        .balign 16, 0x90
drop_equal:
        push    rbx
        push    rbp
        push    r12
        push    r13
        push    r14
        push    r15
        push    rdi
        push    rsi
        mov     rbx, rdi                # the run
        mov     r12, rsi                # runs that are left
        xor     ebp, ebp                # bytes that were equal
.Lrun:
        test    r12, r12
        jz      .Ldropped
        mov     rdi, [rbx]
        mov     rsi, [rbx + 24]
        mov     edx, MADV_POPULATE_READ # fails where a read would end the process
        mov     eax, MADVISE
        syscall
        test    rax, rax
        jnz     .Lnext
        xor     r13d, r13d              # where a stretch of equal pages begins
.Lstretch:
        mov     r14, r13                # where it ends
.Lgrow:
        cmp     r14, [rbx + 24]
        jae     .Lgrown
        mov     r15, r14
        call    .Lcompare
        jne     .Lgrown
        add     r14, PAGE
        jmp     .Lgrow
.Lgrown:
        mov     rsi, r14
        sub     rsi, r13
        jz      .Lskip
        add     rbp, rsi
        mov     rdi, [rbx]
        add     rdi, r13
        mov     edx, MADV_DONTNEED
        mov     eax, MADVISE
        syscall                         # where it fails, all or some pages stay: as good
        mov     rdi, [rbx + 16]
.Lmark:
        mov     rax, r13
        shr     rax, 12
        mov     byte ptr [rdi + rax], 1
        add     r13, PAGE
        cmp     r13, r14
        jb      .Lmark
.Lskip:
        lea     r13, [r14 + PAGE]       # the page at r14 differs, or is the end
        cmp     r13, [rbx + 24]
        jb      .Lstretch
.Lnext:
        add     rbx, 32
        dec     r12
        jmp     .Lrun

# All over again, after all were dropped: one fault then maps up to sixteen pages.

.Ldropped:
        pop     r12
        pop     rbx
.Lagain:
        test    r12, r12
        jz      .Ldone
        xor     r13d, r13d
.Lpage:
        mov     rdi, [rbx + 16]
        mov     rax, r13
        shr     rax, 12
        cmp     byte ptr [rdi + rax], 0
        je      .Lsame
        mov     byte ptr [rdi + rax], 0
        mov     r15, r13
        call    .Lcompare
        je      .Lsame
        mov     rdi, [rbx]
        add     rdi, r13
        mov     rsi, [rbx + 8]
        add     rsi, r13
        mov     ecx, PAGE / 8
        rep movsq
.Lsame:
        add     r13, PAGE
        cmp     r13, [rbx + 24]
        jb      .Lpage
        add     rbx, 32
        dec     r12
        jmp     .Lagain
.Ldone:
        mov     rax, rbp
        pop     r15
        pop     r14
        pop     r13
        pop     r12
        pop     rbp
        pop     rbx
        ret

# Whether the page at r15 of a run is equal to its original: the flag ZF.

.Lcompare:
        mov     rdi, [rbx]
        add     rdi, r15
        mov     rsi, [rbx + 8]
        add     rsi, r15
        xor     ecx, ecx
.Lwords:
        movdqu  xmm0, [rdi + rcx]
        movdqu  xmm1, [rdi + rcx + 16]
        movdqu  xmm2, [rdi + rcx + 32]
        movdqu  xmm3, [rdi + rcx + 48]
        pcmpeqb xmm0, [rsi + rcx]
        pcmpeqb xmm1, [rsi + rcx + 16]
        pcmpeqb xmm2, [rsi + rcx + 32]
        pcmpeqb xmm3, [rsi + rcx + 48]
        pand    xmm0, xmm1
        pand    xmm2, xmm3
        pand    xmm0, xmm2
        pmovmskb eax, xmm0
        cmp     eax, 0xffff
        jne     .Lcompared
        add     ecx, 64
        cmp     ecx, PAGE
        jne     .Lwords
.Lcompared:
        ret
